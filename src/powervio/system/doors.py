"""Client partitions that are guests: a door for each, the file that is its memory, and what QEMU has to be told.

The memory is sealed and has no name of its own: whoever may look into this process' descriptors opens it by a link in
the run folder. So a guest cannot make it shorter, nothing of it stays when this process is killed, and it is empty
again when the next guest comes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from powervio.boot import machine
from powervio.errors import LocalError
from powervio.gateway.layout import FIRST_SOURCE_VECTOR, MAX_VECTORS, machine_map
from powervio.gateway.server import Door, Gateway
from powervio.phyp.partition import Partition
from powervio.system.config import MAX_SOCKET_PATH, Lpar, devices_of
from powervio.system.rundir import guest_files

_LEAST_VECTORS = 32
"""The guest's own two, and one for each queue of the adapters that it has or may get: QEMU has to be told how many
before a disk is attached. Further queues share them."""


class GuestDoor:
    """One guest's way in, from `open` to `close`."""

    def __init__(self, gateway: Gateway, lpar: Lpar, partition: Partition, system: str, folder: Path) -> None:
        """Not there yet; its files will be in `folder`. Raises `LocalError` for a path that is too long."""
        self.lpar = lpar
        self.partition = partition
        self.arch = machine.find(lpar.arch or machine.of_this_machine())
        self.path, self.memory_path = guest_files(folder, lpar.name, system)
        """Of the socket, and of the memory's file."""
        self.vectors = vectors_of(lpar)
        self._gateway = gateway
        self._door: Door | None = None
        length = len(os.fsencode(self.path))
        if length > MAX_SOCKET_PATH:
            raise LocalError(
                f"{self.path} has {length} bytes; the path of a Unix socket has at most {MAX_SOCKET_PATH}: give the"
                " system or the partition a shorter name"
            )

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.partition.area.size

    @property
    def attached(self) -> bool:
        """Whether a guest is there."""
        return self._door is not None and self._door.attached

    @property
    def vacant(self) -> bool:
        """Whether no guest is there, and what the last one left has been cleared away."""
        return self._door is None or self._door.vacant

    @property
    def guests(self) -> int:
        """How many have come so far."""
        return 0 if self._door is None else self._door.sessions

    def open(self) -> None:
        """Let a guest come. Raises `LocalError`."""
        self._remove_files()  # of a process that was killed: only one at a time has the system's name
        try:
            os.symlink(f"/proc/{os.getpid()}/fd/{self.partition.area.fd}", self.memory_path)
        except OSError as error:
            raise LocalError(f"{self.memory_path}: {error.strerror}") from error
        self._door = self._gateway.add(
            self.partition,
            self.path,
            memory_map=machine_map(self.arch.name, self.memory),
            vectors=self.vectors,
        )

    def close(self) -> None:
        """A guest that is there has no hypervisor any more; its partners have been told when this returns."""
        door, self._door = self._door, None
        if door is not None:
            self._gateway.remove(door)
        self._remove_files()

    def _remove_files(self) -> None:
        for path in (self.path, self.memory_path):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def qemu_options(self) -> list[str]:
        """What the guest's QEMU needs, in words of a command line: machine, memory and the device; the rest is free."""
        words = [word.format(memory="ram") for word in self.arch.machine]
        memory = f"memory-backend-file,id=ram,size={self.memory},mem-path={self.memory_path},share=on"
        return [*words, "-m", f"{self.memory >> 20}M", "-object", memory, *self.door_options()]

    def door_options(self) -> list[str]:
        """Those of them that are about the door."""
        return [
            *("-chardev", f"socket,path={self.path},id=gate"),
            *("-device", f"ivshmem-doorbell,chardev=gate,vectors={self.vectors}"),
        ]

    def entry(self) -> dict[str, Any]:
        """What `ps --json` prints."""
        return {
            "path": self.path,
            "memory_path": self.memory_path,
            "vectors": self.vectors,
            "arch": self.arch.name,
            "attached": self.attached,
            "guests": self.guests,
            "qemu": self.arch.qemu,
            "options": self.qemu_options(),
        }


def vectors_of(lpar: Lpar) -> int:
    """Interrupt vectors that a guest is given."""
    queues = sum(disk.queues for disk in lpar.disk) + 2 * sum(1 for _ in devices_of(lpar))
    return min(MAX_VECTORS, max(_LEAST_VECTORS, FIRST_SOURCE_VECTOR + queues))
