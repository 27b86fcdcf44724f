"""The compiled load generator over CRQ and over vhost-user, in turn: what the transport costs, without a driver's code.

Two arrangements, the same for both transports:

- `one_processor`: everything runs on one processor. Over CRQ generator, VIO server and hypervisor take turns in one
  thread; the vhost-user back end is a process of its own, and sleeps and wakes there with the generator.
- `two_processors`: the device's end runs beside the generator. Over CRQ the VIO server has a thread of its own; the
  back end is the same process as before. The kernel puts them where it likes.

Slices of both transports alternate, so that what the machine does meanwhile hits both alike; but where others fight for
the processor, two processes get more of it than one, so the processor time of a request is told beside the rates. Every
block is verified.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from powervio.bench.back_ends import BackEnd, ours
from powervio.bench.back_ends import Image as Served
from powervio.bench.cost import DEPTHS, Cost, cost_of
from powervio.bench.folder import scratch_folder
from powervio.bench.load import Load
from powervio.bench.load_crq import CrqDisk
from powervio.bench.rig import Rig
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.phyp.ledger import Costs
from powervio.transport.crq.redirect import REDIRECT_MIN

ARRANGEMENTS = ("one_processor", "two_processors")
HEADLINE = "one_processor"
"""The arrangement of which `crq_over_vhost_user` is told: both transports have the same processor time there."""


@dataclass(slots=True)
class Generated:
    """Both transports at one depth, in one arrangement."""

    arrangement: str
    depth: int
    crq: list[float] = field(default_factory=list)
    """Requests per second of each slice."""
    vhost_user: list[float] = field(default_factory=list)
    """The same of the slices beside them."""
    crq_requests: int = 0
    vhost_user_requests: int = 0
    crq_cpu_ns: int = 0
    """Processor time of everything that took part, in all slices."""
    vhost_user_cpu_ns: int = 0
    costs: Costs | None = None

    @property
    def crq_rate(self) -> float:
        """Requests per second over CRQ: the median of the slices."""
        return median(self.crq)

    @property
    def vhost_user_rate(self) -> float:
        """Requests per second over vhost-user: the median of the slices."""
        return median(self.vhost_user)

    @property
    def ratio(self) -> float:
        """CRQ by vhost-user: the median over slices that were measured beside each other."""
        return median(ours / theirs for ours, theirs in zip(self.crq, self.vhost_user, strict=True))

    @property
    def crq_cpu_us(self) -> float:
        """Processor time of a request over CRQ, of both ends and the hypervisor, in microseconds."""
        return self.crq_cpu_ns / self.crq_requests / 1000

    @property
    def vhost_user_cpu_us(self) -> float:
        """Processor time of a request over vhost-user, of generator and back end, in microseconds."""
        return self.vhost_user_cpu_ns / self.vhost_user_requests / 1000

    @property
    def cost(self) -> Cost:
        """Calls per request over CRQ."""
        assert self.costs is not None
        return cost_of(self.costs, self.crq_requests)

    def as_json(self) -> dict[str, object]:
        """Plain values, by names that end with the depth."""
        return {
            f"crq_iops_qd{self.depth}": round(self.crq_rate),
            f"vhost_user_iops_qd{self.depth}": round(self.vhost_user_rate),
            f"crq_over_vhost_user_qd{self.depth}": round(self.ratio, 3),
            f"crq_cpu_us_qd{self.depth}": round(self.crq_cpu_us, 3),
            f"vhost_user_cpu_us_qd{self.depth}": round(self.vhost_user_cpu_us, 3),
            f"hcalls_per_request_qd{self.depth}": self.cost.hcalls["total"],
        }


def measure_generated(
    backing: Backing,
    path: Path,
    seconds: float,
    slices: int,
    revision: int,
    tell: Callable[[str, float], None] = lambda what, part: None,
    *,
    packed: bool,
    arrangements: tuple[str, ...] = ARRANGEMENTS,
) -> list[Generated]:
    """Read the numbered image at `path`, which `backing` is, for `seconds` seconds in each row of each transport.

    `tell` gets what is done now and how much of all is done, from 0 to 1. Raises `LocalError`.
    """
    rows: list[Generated] = []
    for number, arrangement in enumerate(arrangements):
        title = arrangement.replace("_", " ")

        def step(what: str, part: float, number: int = number, title: str = title) -> None:
            tell(f"generator, {title}, {what}", (number + part) / len(arrangements))

        rows += _measure(arrangement, backing, path, seconds / slices, slices, revision, step, packed=packed)
    return rows


def _measure(
    arrangement: str,
    backing: Backing,
    path: Path,
    seconds: float,
    slices: int,
    revision: int,
    tell: Callable[[str, float], None],
    *,
    packed: bool,
) -> list[Generated]:
    allowed = os.sched_getaffinity(0)
    cpus = sorted(allowed)[:1] if arrangement == "one_processor" else None
    tell("starting", 0.0)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("powervio-bench-"))
        end = BackEnd(ours(), Served(path), folder, cpus)
        stack.callback(end.close)
        rig = stack.enter_context(Rig(threaded=arrangement == "two_processors", redirect_min=REDIRECT_MIN))
        disk = stack.enter_context(CrqDisk(rig, backing, revision=revision, packed=packed))
        if cpus is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, cpus)
        work: list[tuple[Generated, Load, Load]] = []
        for depth in DEPTHS:
            loads = disk.load(depth), end.disk.load(depth)
            for load in loads:
                load.run(0.0)  # what is made at the first request is no cost of a request
            work.append((Generated(arrangement, depth), *loads))
        for turn in range(slices):
            for number, (row, crq, vhost_user) in enumerate(work):
                tell(f"depth {row.depth}", (turn + number / len(work)) / slices)
                before, cpu = disk.disk.costs(), time.process_time_ns()
                row.crq_requests += _slice(crq, seconds, row.crq)
                row.crq_cpu_ns += time.process_time_ns() - cpu
                spent = disk.disk.costs() - before
                row.costs = spent if row.costs is None else row.costs + spent
                cpu = time.process_time_ns() + end.cpu_ns()
                try:
                    row.vhost_user_requests += _slice(vhost_user, seconds, row.vhost_user)
                except LocalError as error:
                    raise LocalError(f"vhost-user: {end.failed() or error}") from error
                row.vhost_user_cpu_ns += time.process_time_ns() + end.cpu_ns() - cpu
        return [row for row, _, _ in work]


def _slice(load: Load, seconds: float, rates: list[float]) -> int:
    requests = load.run(seconds)
    rates.append(requests / load.nanoseconds * 1e9)
    return requests
