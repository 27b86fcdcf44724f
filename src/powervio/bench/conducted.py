"""A stock guest that a benchmark conducts: it has something over CRQ, and the same of somebody else's beside it.

A program in the guest does what it is told line by line, over a virtio-console port. The thread that tells it, and
takes the time, runs while `boot.run` looks after the guest.
"""

from __future__ import annotations

import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from powervio.bench.rig import costs_of
from powervio.bench.talk import Talk
from powervio.boot import qemu, run
from powervio.boot.guest import BOOT_LIMIT, Terminal
from powervio.boot.machine import Arch
from powervio.boot.processes import Disk
from powervio.boot.programs import Program
from powervio.boot.transport import Served, Watched
from powervio.errors import LocalError
from powervio.phyp.ledger import Costs
from powervio.system.booted import CRQ, GUEST, VIOS, BootShare, Session, started
from powervio.system.vterm import ServedVterm

MEMORY = 512 << 20
"""Bytes of the guest's."""
_PORT = "powervio.bench"
LISTEN = f"""\
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat $port/name)" = {_PORT} ]; then exec 6<>/dev/${{port##*/}}; fi
done
"""
"""How a guest's script begins: what it is told it reads from descriptor 6, and there it answers."""

Tell = Callable[[str, float], None]
"""Is told what is done now, and how much of all is done, from 0 to 1."""
Count = Callable[[], tuple[Costs, int]]
"""Hypervisor calls of everybody, and requests to the device over CRQ, so far."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What QEMU is told of what stands beside ours."""

    options: Sequence[str]
    inherited: Sequence[socket.socket] = ()
    """QEMU's from then on."""
    watched: Sequence[Watched] = ()


class ConductedGuest(ABC):
    """One guest from power on to its end, with one device over CRQ."""

    script: str
    """The guest's, which begins with `LISTEN` and has to end when it is told "end"."""

    def __init__(self, arch: Arch, tell: Tell) -> None:
        self.arch = arch
        self.tell = tell
        self._shares: Sequence[BootShare] = ()
        self._failure: BaseException | None = None

    @abstractmethod
    def beside(self) -> AbstractContextManager[Beside]:
        """What the guest has beside the device over CRQ, for as long as it runs."""

    @abstractmethod
    def conduct(self, talk: Talk, count: Count) -> None:
        """Have it do everything; in a thread of its own. What is raised ends the guest, and `boot` raises it."""

    def boot(
        self,
        cache: Path,
        seconds: float,
        *,
        disks: tuple[Disk, ...] = (),
        shares: Sequence[BootShare] = (),
        programs: tuple[Program, ...] = (),
        driver_options: tuple[str, ...] = (),
    ) -> None:
        """Boot it, and see that it has done everything in `seconds` after that. To be called in the main thread.

        Raises `LocalError`.
        """
        self._shares = shares
        plan = run.Plan(
            arch=self.arch,
            memory=MEMORY,
            cache=cache,
            transport=replace(CRQ, serve=self._serve),
            disks=disks,
            command=self.script,
            timeout=BOOT_LIMIT + seconds,
            programs=programs,
            driver_options=driver_options,
        )
        with open(os.devnull, "wb") as nothing:
            status = run.run(plan, lambda text: self.tell(text, 0.0), Terminal(0, nothing.fileno()), errors=2)
        if self._failure is not None:
            raise self._failure
        if status:
            raise LocalError(f"the guest's work ended with status {status}")

    @contextmanager
    def _serve(self, arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
        with ExitStack() as undo:
            running = undo.enter_context(started(arch, memory, disks, self._shares))
            session = undo.enter_context(closing(Session(running.door(GUEST))))
            beside = undo.enter_context(self.beside())
            ours, theirs = (undo.enter_context(end) for end in socket.socketpair())
            inherited = [*beside.inherited, theirs]
            system = running.system
            device = (*system.disks, *system.devices)[0]
            assert not isinstance(device, ServedVterm)
            partitions = [system.partitions[name].ledger for name in (VIOS, GUEST)]
            ledgers = [device.server_adapter.ledger, device.client_adapter.ledger, *partitions]

            def count() -> tuple[Costs, int]:
                return costs_of(ledgers), device.device.requests

            conductor = threading.Thread(target=self._conduct, args=(Talk(ours), count), name="bench", daemon=True)
            conductor.start()
            served = session.served()

            def handed_over() -> None:
                served.handed_over()
                for end in inherited:
                    end.close()  # when QEMU ends, the other side hears of it

            try:
                yield Served(
                    memory=served.memory,
                    options=[*served.options, *beside.options, *qemu.port_options(_PORT, theirs.fileno())],
                    pass_fds=[*served.pass_fds, *(end.fileno() for end in inherited)],
                    watched=[*served.watched, *beside.watched],
                    handed_over=handed_over,
                )
            finally:
                ours.shutdown(socket.SHUT_RDWR)  # it waits for nothing any more
                conductor.join()

    def _conduct(self, talk: Talk, count: Count) -> None:
        try:
            self.conduct(talk, count)
            talk.say("end")
        except BaseException as error:
            self._failure = error
            talk.close()
