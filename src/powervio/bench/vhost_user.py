"""`powervio bench vhost-user`: our vhost-user block back end beside QEMU's, under the same compiled load generator.

A row is one kind of load on one image. All back ends of a row (ours, and the peer in each of its configurations) run
as processes of their own at the same time, and are measured in short slices in turn, again and again, so that what the
machine does meanwhile hits all alike. A figure is the median of the slices; the peer's is that of its best
configuration in this row. Every block read is verified, and every block written after the row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from powervio.bench import machine
from powervio.bench.back_ends import EXAMPLE, BackEnd, Image, Kind, memory_disk, ours, peer_version, peers
from powervio.bench.folder import scratch_folder
from powervio.bench.images import check_written, filesystem, forget, read_all, resident
from powervio.bench.load import Load
from powervio.bench.machine import busy_seconds
from powervio.bench.reads import write_numbered
from powervio.errors import LocalError

SLICES = 5
PLACEMENTS = ("pinned", "unpinned")
"""Client and back end on one processor each, or where the kernel puts them."""
_WARM_UP = 0.05
_DEPTH = 32
_WRITERS = 1 << 32
"""What is between the numbers that two writers give to a block."""
_OURS = ours()


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of load."""

    name: str
    what: str
    place: str = "memory"
    """Where its image is: "memory" (tmpfs) or "disk"."""
    depth: int = _DEPTH
    writes: bool = False
    polling: bool = False
    """Whether the client looks at the ring again and again instead of sleeping."""
    direct: bool = False
    """Around the page cache."""
    back_end: Kind = _OURS
    """Ours, in this row."""
    checkout: bool = False
    """Whether that is an example, which an installed package does not have."""
    wanted: float | None = None
    """Requests per second of ours by those of the peer: what it has to be at least, pinned."""
    wanted_cpu: float | None = None
    """Processor time of a request of ours by that of the peer: what it may be at most, pinned."""

    @property
    def warm(self) -> bool:
        """Whether its image has to be in the page cache, from which the kernel may take it."""
        return self.place == "disk" and not self.direct


ROWS = (
    Row("read-sleep", "tmpfs, reads, depth 32, client sleeps", wanted=2.5, wanted_cpu=0.5),
    Row("read-poll", "tmpfs, reads, depth 32, client polls", polling=True, wanted=1.9, wanted_cpu=0.5),
    Row("no-mmap-sleep", "the same as read-sleep, ours does not map the image", back_end=ours("--no-mmap")),
    Row("no-mmap-poll", "the same as read-poll, ours does not map the image", polling=True, back_end=ours("--no-mmap")),
    Row("one-sleep", "tmpfs, reads, depth 1, client sleeps", depth=1, wanted=0.95),
    Row(
        "one-spin", "the same as one-sleep, ours spins for 50 us", depth=1, back_end=ours("--spin-us", "50"), wanted=2.0
    ),
    Row("write", "tmpfs, writes, depth 32, client sleeps", writes=True, wanted=2.0),
    Row("warm", "disk in the page cache, reads, depth 32, client sleeps", "disk", wanted=1.4),
    Row("direct", "disk, O_DIRECT, reads, depth 32, client sleeps", "disk", direct=True, wanted=0.95, wanted_cpu=0.7),
    Row("python", "tmpfs, reads, depth 32, client sleeps; ours is examples/memory_disk.py", back_end=memory_disk(),
        checkout=True, wanted=1.0),
)  # fmt: skip
"""All rows, in the order in which they are measured."""


def usual_rows() -> list[Row]:
    """Those for which everything of ours is there."""
    return [row for row in ROWS if EXAMPLE.exists() or not row.checkout]


@dataclass(slots=True)
class Slice:
    """What one back end did in one slice."""

    requests: int
    seconds: float
    cpu_us: float
    """Processor time of the back end, microseconds of each request."""
    client_cpu_us: float
    kicks: int
    sleeps: int
    """How often the client slept."""
    others: float = 0.0
    """Processors that were busy for anybody else meanwhile, or not there (stolen by a hypervisor); coarse."""
    resident: tuple[float, float] | None = None
    """Which part of the image the page cache had before and after, where that has to be all of it."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(slots=True)
class Measured:
    """One back end in one row."""

    name: str
    command: list[str]
    slices: list[Slice] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests per second, median of the slices."""
        return median(one.rate for one in self.slices)

    @property
    def cpu_us(self) -> float:
        """Processor time of a request in microseconds, median of the slices."""
        return median(one.cpu_us for one in self.slices)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "name": self.name,
            "command": self.command,
            "iops": round(self.rate),
            "cpu_us": round(self.cpu_us, 3),
            "slices": [{**asdict(one), "iops": round(one.rate)} for one in self.slices],
        }


@dataclass(slots=True)
class Comparison:
    """One row in one placement, and what came of it."""

    row: Row
    placement: str
    ours: Measured
    peers: list[Measured]

    @property
    def best(self) -> Measured:
        """The peer's best configuration."""
        return max(self.peers, key=lambda peer: peer.rate)

    @property
    def ratio(self) -> float:
        """Requests per second of ours by those of the best peer."""
        return self.ours.rate / self.best.rate

    @property
    def cpu_ratio(self) -> float:
        """Processor time of a request of ours by that of the best peer."""
        return self.ours.cpu_us / self.best.cpu_us

    @property
    def least_resident(self) -> float:
        """The smallest part of its image that the page cache had, where that has to be all of it; else 1."""
        parts = [part for each in (self.ours, *self.peers) for one in each.slices for part in one.resident or ()]
        return min(parts, default=1.0)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "row": self.row.name,
            "what": self.row.what,
            "placement": self.placement,
            "depth": self.row.depth,
            "writes": self.row.writes,
            "client": "polls" if self.row.polling else "sleeps",
            "ratio": round(self.ratio, 3),
            "cpu_ratio": round(self.cpu_ratio, 3),
            "wanted_ratio": self.row.wanted,
            "wanted_cpu_ratio": self.row.wanted_cpu,
            "best_peer": self.best.name,
            "ours": self.ours.as_json(),
            "peers": [peer.as_json() for peer in self.peers],
        }


@dataclass(slots=True)
class Result:
    """What a run measured, and under which conditions."""

    conditions: dict[str, object]
    comparisons: list[Comparison]

    def _requests(self, *, writes: bool) -> int:
        return sum(
            one.requests
            for comparison in self.comparisons
            if comparison.row.writes is writes
            for each in (comparison.ours, *comparison.peers)
            for one in each.slices
        )

    @property
    def verified_reads(self) -> int:
        """Reads in slices; each carried its block's number."""
        return self._requests(writes=False)

    @property
    def others(self) -> float:
        """Processors that were busy for anybody else, on average of all slices."""
        slices = [one for each in self.comparisons for side in (each.ours, *each.peers) for one in side.slices]
        return sum(one.others * one.seconds for one in slices) / sum(one.seconds for one in slices)

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        return {
            "conditions": self.conditions,
            "others": round(self.others, 3),
            "verified_reads": self.verified_reads,
            "verified_writes": self._requests(writes=True),
            "rows": [comparison.as_json() for comparison in self.comparisons],
        }


@dataclass(frozen=True, slots=True)
class _Step:
    """One of several steps, of which the progress of all is told."""

    tell: Callable[[str, float], None]
    number: int
    count: int
    title: str

    def __call__(self, what: str, part: float) -> None:
        self.tell(f"{self.title}: {what}", (self.number + part) / self.count)


def processors() -> tuple[int, int] | None:
    """One for the client and one for the back end; None where there is one only."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else None


def measure(
    rows: Sequence[Row],
    placements: Sequence[str],
    seconds: float,
    size: int,
    memory_folder: Path,
    disk_folder: Path,
    progress: Callable[[str, float], None] | None = None,
) -> Result:
    """Measure rows in placements, `seconds` for each back end of each, on images of `size` bytes made in the folders.

    `progress` is told what is done now and how much of all is done, from 0 to 1. Raises `LocalError` when something
    that a row needs is not there, before anything is measured.
    """
    tell = progress or (lambda what, part: None)
    folders = {"memory": memory_folder, "disk": disk_folder}
    version = peer_version()
    if "pinned" in placements and processors() is None:
        raise LocalError("pinned rows need two processors; --placement unpinned leaves them out")
    if not EXAMPLE.exists() and any(row.checkout for row in rows):
        raise LocalError(f"row python needs {EXAMPLE}, which a checkout of powervio has")
    systems = {place: filesystem(folders[place]) for place in {row.place for row in rows}}
    if systems.get("memory", "tmpfs") != "tmpfs":
        raise LocalError(f"{memory_folder} is {systems['memory']}; rows on tmpfs need a folder there")
    if systems.get("disk") == "tmpfs":
        raise LocalError(f"{disk_folder} is tmpfs; rows on a disk need a folder there")
    conditions = _conditions(version, seconds, size, systems)
    comparisons: list[Comparison] = []
    try:
        with ExitStack() as stack:
            images = {}
            for place in systems:
                tell(f"making an image of {size >> 20} MiB in {folders[place]}", 0.0)
                own = stack.enter_context(scratch_folder("powervio-bench-", folders[place]))
                images[place] = own / "numbered.img"
                write_numbered(images[place], size)
            work = [(row, placement) for placement in placements for row in rows]
            for number, (row, placement) in enumerate(work):
                step = _Step(tell, number, len(work), f"{row.name}, {placement}")
                comparisons.append(_measure_row(row, placement, images[row.place], seconds / SLICES, step))
    except OSError as error:
        raise LocalError(f"the benchmark failed: {error}") from error
    conditions["load_average_after"] = machine.load_average()
    return Result(conditions, comparisons)


def _conditions(version: str, seconds: float, size: int, systems: dict[str, str]) -> dict[str, object]:
    return machine.conditions() | {
        "peer": version,
        "image_bytes": size,
        "filesystems": systems,
        "slices": SLICES,
        "slice_seconds": seconds / SLICES,
    }


def _measure_row(row: Row, placement: str, path: Path, seconds: float, tell: _Step) -> Comparison:
    image = Image(path, writable=row.writes, direct=row.direct)
    kinds: list[Kind] = [row.back_end, *peers(direct=row.direct)]
    cpus = processors() if placement == "pinned" else None
    tell("starting", 0.0)
    if row.direct:
        forget(path)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("powervio-bench-"))
        ends = []
        for kind in kinds:
            end = BackEnd(kind, image, folder, None if cpus is None else cpus[1:])
            stack.callback(end.close)
            ends.append(end)
        bases = [_WRITERS * (number + 1) if row.writes else 0 for number in range(len(ends))]
        loads = [end.disk.load(row.depth, writes=row.writes, first=base) for end, base in zip(ends, bases, strict=True)]
        measured = [Measured(end.kind.name, end.command) for end in ends]
        if cpus is not None:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, cpus[:1])
        for end, load in zip(ends, loads, strict=True):
            end.disk.port.polling = row.polling
            _run(end, load, min(seconds, _WARM_UP))
        for turn in range(SLICES):
            for step in range(len(ends)):
                number = (turn + step) % len(ends)  # another one begins each turn
                tell(measured[number].name, (turn + step / len(ends)) / SLICES)
                measured[number].slices.append(_slice(row, path, ends[number], loads[number], seconds))
    if row.writes:
        check_written(path, 0, [(base, load.touched) for base, load in zip(bases, loads, strict=True)])
        write_numbered(path, path.stat().st_size)
    return Comparison(row, placement, measured[0], measured[1:])


def _slice(row: Row, path: Path, end: BackEnd, load: Load, seconds: float) -> Slice:
    port = end.disk.port
    before = None
    if row.warm:
        read_all(path)
        before = resident(path)
    kicks, sleeps, busy = port.kicks, port.sleeps, busy_seconds()
    cpu, client = end.cpu_ns(), time.thread_time_ns()
    requests = _run(end, load, seconds)
    cpu, client = end.cpu_ns() - cpu, time.thread_time_ns() - client
    elapsed = load.nanoseconds / 1e9
    others = (busy_seconds() - busy - (cpu + client) / 1e9) / elapsed
    return Slice(
        requests,
        elapsed,
        round(cpu / requests / 1000, 3),
        round(client / requests / 1000, 3),
        port.kicks - kicks,
        port.sleeps - sleeps,
        max(0.0, round(others, 3)),
        None if before is None else (before, resident(path)),
    )


def _run(end: BackEnd, load: Load, seconds: float) -> int:
    try:
        return load.run(seconds)
    except LocalError as error:
        raise LocalError(f"{end.kind.name}: {end.failed() or error}") from error
