"""What a guest that this process boots has: a system of one VIO server and the guest's partition, behind its door.

The guest's memory and its connection to the door are descriptors that QEMU inherits. What stands in the run folder for
as long as the system runs, a socket and a link, goes with it; of a process that was killed the next one removes it.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from powervio.boot import module, qemu
from powervio.boot.machine import Arch
from powervio.boot.processes import Disk as BootDisk
from powervio.boot.transport import Served, Transport
from powervio.errors import LocalError
from powervio.system import sizing
from powervio.system.config import Config, Disk, Lpar, Size, Vios
from powervio.system.doors import GuestDoor
from powervio.system.fs_section import SERVER_MEMORY, Fs
from powervio.system.threaded import ThreadedSystem
from powervio.system.types import with_sections

NAME = "boot"
"""Of the system."""
GUEST = "guest"
VIOS = "vios"
CONNECT_LIMIT = 10.0
"""Seconds for the hypervisor to take the guest's connection."""


class Session:
    """The guest's connection to the hypervisor, as this process keeps it to see its end."""

    def __init__(self, door: GuestDoor) -> None:
        """Raises `LocalError`."""
        self._door = door
        self.socket = socket.socket(socket.AF_UNIX)
        self._poll = select.epoll()
        try:
            self.socket.settimeout(CONNECT_LIMIT)
            self.socket.connect(door.path)
            self.socket.settimeout(None)
            # not what is said there, which is QEMU's: only that the other side closes it
            self._poll.register(self.socket, select.EPOLLRDHUP)
        except OSError as error:
            self.close()
            raise LocalError(f"the hypervisor does not take the guest: {error}") from error

    def served(self) -> Served:
        """What QEMU is told."""
        memory = self._door.partition.area.fd
        return Served(
            memory=qemu.memory_in(memory, self._door.memory),
            options=qemu.door_options(self.socket.fileno(), self._door.vectors),
            pass_fds=[memory, self.socket.fileno()],
            watched=[self],
            handed_over=lambda: None,
        )

    def fileno(self) -> int:
        """Readable when the hypervisor has ended the session."""
        return self._poll.fileno()

    def has_failed(self) -> bool:
        """Whether it has; QEMU's end does not end it, since this process has the connection too."""
        return bool(self._poll.poll(0))

    def say_why(self) -> str:
        """For the guest's user."""
        return "the hypervisor has ended the guest's session"

    def close(self) -> None:
        """Let go of it; QEMU may still have it."""
        self._poll.close()
        self.socket.close()


@dataclass(frozen=True, slots=True)
class BootShare:
    """A folder for a guest."""

    folder: str
    tag: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> BootShare:
        """From FOLDER[,tag=TAG][,readonly]; FOLDER may have commas, and its last name is the tag if none is given.

        Raises `LocalError`.
        """
        folder, tag, read_only = text, None, False
        while True:
            before, comma, option = folder.rpartition(",")
            if comma and option == "readonly":
                read_only = True
            elif comma and option.startswith("tag="):
                tag = option.removeprefix("tag=")
            else:
                break
            folder = before
        if not os.path.isdir(folder):
            raise LocalError(f"share {folder}: no such folder")
        return cls(folder, os.path.basename(os.path.abspath(folder)) if tag is None else tag, read_only)


def configuration(arch: Arch, memory: int, disks: Sequence[BootDisk], shares: Sequence[BootShare] = ()) -> Config:
    """The system that a guest with these disks and shares needs."""
    declared = [
        Disk(vios=VIOS, image=disk.image, format=disk.format, readonly=disk.read_only)  # type: ignore[arg-type]
        for disk in disks
    ]
    folders = [
        Fs(vios=VIOS, dir=os.path.abspath(share.folder), tag=share.tag, readonly=share.read_only) for share in shares
    ]
    vios = Vios(name=VIOS)
    need = -(-(sizing.server_need(declared) + len(folders) * SERVER_MEMORY) // sizing.PAGE) * sizing.PAGE
    vios.memory = Size(max(vios.memory, 2 * need))
    lpar = with_sections(Lpar)(name=GUEST, guest="door", arch=arch.name, memory=Size(memory), disk=declared, fs=folders)
    assert isinstance(lpar, Lpar)
    return Config(NAME, [vios], [lpar], file=NAME)


@contextmanager
def started(
    arch: Arch, memory: int, disks: Sequence[BootDisk], shares: Sequence[BootShare] = ()
) -> Iterator[ThreadedSystem]:
    """That system, running. Raises `LocalError`, also at its end."""
    system = ThreadedSystem(configuration(arch, memory, disks, shares))
    with _telling_of(disks):
        system.__enter__()
    try:
        yield system
    except BaseException as error:
        system.__exit__(type(error), error, error.__traceback__)
        raise
    with _telling_of(disks):
        system.__exit__(None, None, None)


@contextmanager
def _crq(arch: Arch, memory: int, disks: Sequence[BootDisk], shares: Sequence[BootShare] = ()) -> Iterator[Served]:
    with started(arch, memory, disks, shares) as running:
        session = Session(running.door(GUEST))
        try:
            yield session.served()
        finally:
            session.close()


CRQ = Transport(_crq, module.sources)
"""virtio over CRQ and TCEs: phyp and a VIO server in this process, the guest behind the gateway."""


def crq_with(shares: Sequence[BootShare]) -> Transport:
    """The same, and folders that the guest can mount by their tags."""
    return replace(CRQ, serve=partial(_crq, shares=tuple(shares)))


@contextmanager
def _telling_of(disks: Sequence[BootDisk]) -> Iterator[None]:
    """Let complaints about the system be complaints about the disks that the user named."""

    def disk(found: re.Match[str]) -> str:
        image, rest = disks[int(found[1])].image, found[2]
        return rest if image in rest else f"disk {image}: {rest}"

    try:
        yield
    except LocalError as error:
        place = rf"^{NAME}: lpar\[0\]\.disk\[(\d+)\][.\w]*: (.*)$"
        raise LocalError(re.sub(place, disk, str(error), flags=re.MULTILINE)) from error
