"""A guest that a system boots, from power on to its end: `guest_main SOCKET PARENT`, started by `linux_guest`.

It is `powervio boot` with the disks of a system that runs in the process PARENT. SOCKET is the descriptor of the socket
by which it hears what to boot and says how far it is; standard input and output are the guest's console. It ends with
PARENT, and QEMU with it. When standard input ends, the guest is told to power off.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from powervio.boot import cache, machine, module, run
from powervio.boot.guest import Terminal
from powervio.boot.machine import Arch
from powervio.boot.processes import Disk
from powervio.boot.transport import Served, Transport
from powervio.errors import PowervioError

PACKET = 1 << 16
_PR_SET_PDEATHSIG = 1
_ENDED = 3


class Orders(msgspec.Struct):
    """What to boot."""

    arch: str
    memory: int
    memory_option: str
    """QEMU's object that the memory is in."""
    options: list[str]
    """QEMU's words for the door."""
    disks: list[tuple[str, bool]]
    """Images, and whether they are read-only; for people, and for the guest to wait for so many."""
    command: str | None


class Said(msgspec.Struct):
    """How far it is."""

    step: str = ""
    failure: str = ""
    status: int | None = None
    """When the guest has powered off: that of its command, 0 without one."""


def _boot(orders: Orders, say: socket.socket) -> None:
    @contextmanager
    def serve(arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
        yield Served(orders.memory_option, orders.options, (), (), lambda: None)

    def tell(said: Said) -> None:
        with suppress(OSError):  # the system ends, and this process with it
            say.sendall(msgspec.json.encode(said))

    plan = run.Plan(
        arch=machine.find(orders.arch),
        memory=orders.memory,
        cache=cache.default_folder(),
        transport=Transport(serve, module.sources),
        disks=tuple(Disk(image, read_only) for image, read_only in orders.disks),
        command=orders.command,
    )
    terminal = Terminal(0, 1, lambda typed: (typed, False))
    try:
        tell(Said(status=run.run(plan, lambda step: tell(Said(step=step)), terminal, errors=1)))
    except (PowervioError, OSError) as error:
        tell(Said(failure=str(error)))


def main() -> None:
    """The program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        os._exit(_ENDED)
    with suppress(OSError):  # then another size of the operator's terminal is heard of
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    _boot(msgspec.json.decode(control.recv(PACKET), type=Orders), control)


if __name__ == "__main__":
    main()
