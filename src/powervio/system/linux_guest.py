"""Guests that the system itself boots: `[[lpar]] guest = "linux"`.

A stock kernel in QEMU, as `powervio boot --transport crq` has it, in a process of its own (`guest_main`) that ends with
this one. Its serial console is what `powervio console` attaches to; what nobody reads is kept as far as there is room.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import powervio
from powervio.boot import qemu
from powervio.errors import LocalError
from powervio.system.config import Lpar
from powervio.system.doors import GuestDoor
from powervio.system.guest_main import PACKET, Orders, Said
from powervio.virtio.stream import ByteQueue

_log = logging.getLogger(__name__)

POWER_OFF_LIMIT = 20.0
"""Seconds for a guest to write back what it has and to power off, when the system stops."""
VACATE_LIMIT = 10.0
_LOOK = 0.02
_PIECE = 16 * 1024
_ROOM = 64 * 1024
"""Bytes of the console's last output that are kept for whoever attaches."""
_SIZE = struct.Struct("HHHH")


class GuestConsole:
    """The operator's side of a guest's console (`OperatorPort`), in the event loop's thread."""

    can_close = True

    def __init__(self) -> None:
        self.to_driver = ByteQueue()
        self.from_driver = ByteQueue(_ROOM)
        self.closings = 0
        """Ends of guests."""
        self.removed = True
        """Whether there is no guest; what the last one said can be read."""
        self.on_change: Callable[[], None] | None = None
        self._attached = False
        self._source = self._sink = -1
        self._size = (80, 24)
        self.to_driver.on_data = self._write_on
        self.from_driver.on_room = self._read_on

    # -- the operator

    def attach(self) -> None:
        """See `OperatorPort.attach`."""
        if self._attached:
            raise LocalError("somebody is attached to this console already")
        self._attached = True

    def detach(self) -> None:
        """See `OperatorPort.detach`."""
        self._attached = False
        self.from_driver.on_data = self.on_change = None
        self._read_on()

    def resize(self, columns: int, rows: int) -> None:
        """See `OperatorPort.resize`."""
        self._size = columns, rows
        if self._source >= 0:
            fcntl.ioctl(self._source, termios.TIOCSWINSZ, _SIZE.pack(rows, columns, 0, 0))

    # -- the guest

    def open(self, source: int, sink: int) -> None:
        """A guest begins: a terminal's master that its output is read from, and a non-blocking descriptor for input."""
        self._source, self._sink, self.removed = source, sink, False
        self.from_driver.take(_ROOM)
        self.to_driver.take(len(self.to_driver))
        self.resize(*self._size)
        self._read_on()

    def close(self) -> None:
        """The guest has ended; what it said is still there to be read."""
        if self._source < 0:
            return
        self._read()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._source)
        loop.remove_writer(self._sink)
        self._source = self._sink = -1
        self.closings += 1
        self.removed = True
        if self.on_change is not None:
            self.on_change()

    def _read_on(self) -> None:
        if self._source >= 0:
            asyncio.get_running_loop().add_reader(self._source, self._read)

    def _read(self) -> None:
        if self._attached and not self.from_driver.room:
            asyncio.get_running_loop().remove_reader(self._source)  # the operator is slow: so is the guest
            return
        try:
            data = os.read(self._source, min(_PIECE, self.from_driver.room) if self._attached else _PIECE)
        except BlockingIOError:
            return
        except OSError:  # nobody has the other side open
            data = b""
        if data:
            self.from_driver.put_all(data)
            self.from_driver.trim()
        else:
            asyncio.get_running_loop().remove_reader(self._source)

    def _write_on(self) -> None:
        if self._sink >= 0:
            asyncio.get_running_loop().add_writer(self._sink, self._write)

    def _write(self) -> None:
        try:
            self.to_driver.consume(os.write(self._sink, self.to_driver.peek(0, _PIECE)))
        except BlockingIOError:
            return
        except OSError:
            self.to_driver.take(len(self.to_driver))
        if not self.to_driver:
            asyncio.get_running_loop().remove_writer(self._sink)


class LinuxGuest:
    """One guest, started any number of times; in the event loop's thread."""

    def __init__(self, door: GuestDoor, lpar: Lpar) -> None:
        self.name = lpar.name
        self.console = GuestConsole()
        self.step = ""
        """How far it is."""
        self.reason = ""
        """Why there is none."""
        self._door = door
        self._lpar = lpar
        self._child: subprocess.Popen[bytes] | None = None
        self._fds: list[int] = []
        self._said = Said()
        self._input: socket.socket | None = None
        self._control: socket.socket | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return None if self._child is None else self._child.pid

    @property
    def state(self) -> str:
        """starting, running or terminated."""
        if self._child is None:
            return "terminated"
        return "running" if self._door.attached else "starting"

    def entry(self) -> dict[str, Any]:
        """What `ps --json` prints."""
        return {"state": self.state, "pid": self.pid, "step": self.step, "reason": self.reason}

    # -- life

    def start(self) -> None:
        """Power on; it comes up by itself. Raises `LocalError`."""
        arch = self._door.arch
        if shutil.which(arch.qemu) is None:
            raise LocalError(f"{arch.qemu}, which {self.name} runs in, is missing: apt-get install {arch.qemu_package}")
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        typing, their_typing = socket.socketpair()
        master, slave = os.openpty()
        tty.setraw(slave)
        folder = str(Path(powervio.__file__).resolve().parents[1])
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-P", "-m", "powervio.system.guest_main"]
        try:
            # in this thread: the process is killed when the thread that started it ends
            child = subprocess.Popen(
                [*command, str(their_control.fileno()), str(os.getpid())],
                stdin=their_typing.fileno(),
                stdout=slave,
                pass_fds=[their_control.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm"},
                start_new_session=True,
            )
        except OSError as error:
            for end in (control, typing):
                end.close()
            os.close(master)
            raise LocalError(f"the process of {self.name} cannot be started ({error})") from error
        finally:
            their_control.close()
            their_typing.close()
            os.close(slave)
        for fd in (control.fileno(), typing.fileno(), master):
            os.set_blocking(fd, False)
        control.send(msgspec.json.encode(self._orders()))
        self._child, self._control, self._input = child, control, typing
        self._said, self.step, self.reason = Said(), "", ""
        self._fds = [master, os.pidfd_open(child.pid)]
        self._ended.clear()
        self.console.open(master, typing.fileno())
        loop = asyncio.get_running_loop()
        loop.add_reader(control.fileno(), self._hear)
        loop.add_reader(self._fds[1], self._has_ended)

    def _orders(self) -> Orders:
        door = self._door
        return Orders(
            arch=door.arch.name,
            memory=int(door.memory),  # a Size
            memory_option=f"memory-backend-file,id={qemu.MEMORY},size={door.memory},mem-path={door.memory_path},share=on",
            options=door.door_options(),
            disks=[(disk.image, disk.readonly) for disk in self._lpar.disk],
            command=self._lpar.exec,
        )

    def _hear(self) -> None:
        assert self._control is not None
        try:
            packet = self._control.recv(PACKET)
        except BlockingIOError:
            return
        if not packet:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            return
        said = msgspec.json.decode(packet, type=Said)
        if said.step:
            self.step = said.step
            _log.info("%s: %s", self.name, said.step)
        else:
            self._said = said

    def _has_ended(self) -> None:
        child, control, typing = self._child, self._control, self._input
        assert child is not None
        assert control is not None
        assert typing is not None
        with suppress(OSError):
            self._hear()
        loop = asyncio.get_running_loop()
        loop.remove_reader(control.fileno())
        loop.remove_reader(self._fds[1])
        self.console.close()
        control.close()
        typing.close()
        for fd in self._fds:
            os.close(fd)
        status = child.wait()
        self._child = self._control = self._input = None
        self.step = ""
        if self._said.failure:
            self.reason = " ".join(self._said.failure.split())
            _log.warning("%s: %s", self.name, self.reason)
        elif self._said.status is not None:
            self.reason = (
                "it powered off" if self._lpar.exec is None else f"its command ended with status {self._said.status}"
            )
        else:
            self.reason = f"killed ({signal.Signals(-status).name})" if status < 0 else f"it ended with status {status}"
        self._ended.set()

    async def boot(self) -> None:
        """Power on again, when it is off. Raises `LocalError`."""
        if self._child is not None:
            raise LocalError(f"{self.name} is {self.state}; only a guest that has ended can be started")
        await self._vacated()
        if self._child is None:  # nobody else was quicker
            self.start()

    async def terminate(self) -> None:
        """Power off as by pulling the plug; returns when its VIO servers have been told. Raises `LocalError`."""
        if self._child is None:
            raise LocalError(f"{self.name} is terminated already")
        self._child.kill()
        await self._ended.wait()
        await self._vacated()

    async def _vacated(self) -> None:
        deadline = time.monotonic() + VACATE_LIMIT
        while not self._door.vacant:
            if time.monotonic() > deadline:
                raise LocalError(f"{self.name}: its last guest has not ended; look at `powervio ps`")
            await asyncio.sleep(_LOOK)

    async def stop(self) -> None:
        """Let a guest with a shell power off; one that runs a command, or takes too long, is turned off.

        Raises `LocalError` if its file systems may be unclean.
        """
        if self._child is None:
            return
        late = False
        if self._lpar.exec is None and self._door.attached and self._input is not None:
            self._input.shutdown(socket.SHUT_WR)
            try:
                async with asyncio.timeout(POWER_OFF_LIMIT):
                    await self._ended.wait()
            except TimeoutError:
                late = True
        if self._child is not None:
            self._child.kill()
            await self._ended.wait()
        if late:
            raise LocalError(f"it did not power off within {POWER_OFF_LIMIT:g} s, and was turned off")
