"""How a guest reaches its disks: who serves them, and what QEMU is told of it.

A transport is a context: from its beginning the disks are served, when it ends well all that was written is stable. It
is entered before QEMU starts and left after QEMU has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from powervio.boot import qemu
from powervio.boot.machine import Arch
from powervio.boot.module import Sources
from powervio.boot.processes import BackEnd, Disk


class Watched(Protocol):
    """Something that a guest cannot go on without."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when it has ended."""

    def has_failed(self) -> bool:
        """Whether it has ended otherwise than because QEMU has."""

    def say_why(self) -> str:
        """Why it has ended."""


@dataclass(frozen=True, slots=True)
class Served:
    """Disks that are served to one guest that has not started yet."""

    memory: str
    """QEMU's memory back end, an object."""
    options: Sequence[str]
    """More words of QEMU's command line."""
    pass_fds: Sequence[int]
    """What QEMU inherits."""
    watched: Sequence[Watched]
    handed_over: Callable[[], None]
    """To be called when QEMU has inherited it."""


@dataclass(frozen=True, slots=True)
class Transport:
    """One way."""

    serve: Callable[[Arch, int, Sequence[Disk]], AbstractContextManager[Served]]
    """Of an architecture, bytes of memory, and disks. Raises `LocalError`, also at the end."""
    driver: Callable[[], Sources] | None = None
    """Sources of the driver that stock kernels lack for it."""


@contextmanager
def _vhost_user(arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
    with ExitStack() as undo:
        back_ends = []
        for disk in disks:
            back_ends.append(BackEnd(disk))
            undo.callback(back_ends[-1].close)
        for back_end in back_ends:
            back_end.wait_until_ready()
        sockets = [back_end.socket.fileno() for back_end in back_ends]

        def handed_over() -> None:
            for back_end in back_ends:
                back_end.socket.close()  # when QEMU ends, it hears of it

        options = qemu.vhost_user_options(sockets)
        yield Served(qemu.memory_of_its_own(memory), options, sockets, back_ends, handed_over)
        for back_end in back_ends:
            back_end.finish()


VHOST_USER = Transport(_vhost_user)
"""QEMU's own vhost-user-blk-pci, and a process of ours for each disk."""
