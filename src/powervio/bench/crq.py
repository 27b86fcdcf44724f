"""`powervio bench crq`: random reads of 4 KiB through virtio over CRQ, as fast as they go.

Two schedules, for they answer different questions:

- `one_thread`: client and VIO server take turns in one thread. No wake-up of another processor is in the figures, so
  they show what the code itself costs.
- `two_threads`: the VIO server has a thread of its own, as it has in a system. What a wake-up costs is in the figures.

All rows are measured in short slices, in turn, again and again, so that what the machine does meanwhile hits all alike;
a row's figure is the median of its slices. Data is in the page cache, and each block read has to carry its number.

Rows of the compiled load generator, beside our vhost-user path under the same load, follow: see `generator`.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from powervio import _compiled
from powervio.bench.cost import DEPTHS, Cost, cost_of, count_costs
from powervio.bench.folder import scratch_folder
from powervio.bench.generator import ARRANGEMENTS, Generated, measure_generated
from powervio.bench.generator import HEADLINE as HEADLINE_ARRANGEMENT
from powervio.bench.reads import AwaitReader, BatchReader, write_numbered
from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.phyp.ledger import Costs
from powervio.storage.image import Image, open_image
from powervio.transport.crq.redirect import REDIRECT_MIN

SCHEDULES = ("one_thread", "two_threads")
STYLES = ("batch", "await")
HEADLINE = "one_thread"
"""The schedule whose rates are the headline: that of a system which was not told otherwise (`powervio up`)."""
FREE_RUNNING = "two_threads"
"""The schedule in which the partitions run at the same time, so that how much comes together is left to chance."""

_SHARED_MEMORY = Path("/dev/shm")
_SLICES = 5


@dataclass(slots=True)
class Row:
    """One way of reading, and what came of it."""

    schedule: str
    style: str
    depth: int
    rates: list[float] = field(default_factory=list)
    """Requests per second of each slice."""
    requests: int = 0
    costs: Costs | None = None

    @property
    def rate(self) -> float:
        """Requests per second: the median of the slices."""
        return median(self.rates)

    @property
    def cost(self) -> Cost:
        """Calls per request while it ran freely."""
        assert self.costs is not None
        return cost_of(self.costs, self.requests)

    def add(self, requests: int, seconds: float, costs: Costs) -> None:
        """One more slice."""
        self.rates.append(requests / seconds)
        self.requests += requests
        self.costs = costs if self.costs is None else self.costs + costs


@dataclass(slots=True)
class Result:
    """What a run measured."""

    revision: int
    ring: str
    """"split" or "packed"."""
    image_bytes: int
    image_folder: str
    compiled: bool
    """Whether the hot path ran compiled."""
    slices: int
    slice_seconds: float
    rows: list[Row]
    costs: dict[int, Cost]
    """By depth, with the partitions polled in turn."""
    kept_mapped: dict[int, Cost]
    """The same with buffers that stay mapped."""
    generated: list[Generated]
    """The compiled load generator over both transports."""

    def row(self, schedule: str, style: str, depth: int) -> Row:
        """The row of these."""
        return next(row for row in self.rows if (row.schedule, row.style, row.depth) == (schedule, style, depth))

    def generated_row(self, arrangement: str, depth: int) -> Generated:
        """The row of these."""
        return next(row for row in self.generated if (row.arrangement, row.depth) == (arrangement, depth))

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        values: dict[str, object] = {
            "revision": self.revision,
            "ring": self.ring,
            "compiled": self.compiled,
            "image_bytes": self.image_bytes,
            "image_folder": self.image_folder,
            "slices": self.slices,
            "slice_seconds": self.slice_seconds,
            "verified_reads": sum(row.requests for row in self.rows)
            + sum(row.crq_requests + row.vhost_user_requests for row in self.generated),
            "schedule": HEADLINE,
        }
        for schedule in SCHEDULES:
            place: dict[str, object] = {}
            for depth in DEPTHS:
                place[f"iops_qd{depth}"] = round(self.row(schedule, "batch", depth).rate)
                place[f"await_iops_qd{depth}"] = round(self.row(schedule, "await", depth).rate)
                cost = self.row(schedule, "batch", depth).cost
                place[f"hcalls_per_request_qd{depth}"] = cost.hcalls
                place[f"remote_copies_per_request_qd{depth}"] = cost.remote_copies
            values[schedule] = place
        for depth in DEPTHS:
            values[f"iops_qd{depth}"] = round(self.row(HEADLINE, "batch", depth).rate)
            values[f"await_iops_qd{depth}"] = round(self.row(HEADLINE, "await", depth).rate)
            free = self.row(FREE_RUNNING, "batch", depth).cost
            for suffix, cost in (("", self.costs[depth]), ("_free", free), ("_kept_mapped", self.kept_mapped[depth])):
                values[f"hcalls_per_request_qd{depth}{suffix}"] = cost.hcalls
                values[f"remote_copies_per_request_qd{depth}{suffix}"] = cost.remote_copies
        generator: dict[str, dict[str, object]] = {arrangement: {} for arrangement in ARRANGEMENTS}
        for generated in self.generated:
            generator[generated.arrangement].update(generated.as_json())
        values["generator"] = generator
        values["crq_over_vhost_user"] = generator[HEADLINE_ARRANGEMENT][f"crq_over_vhost_user_qd{max(DEPTHS)}"]
        return values


def default_folder() -> Path:
    """Where the image is made: in memory if that is there."""
    return _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def measure(
    size: int,
    seconds: float,
    revision: int = 1,
    progress: Callable[[str, float], None] | None = None,
    folder: Path | None = None,
    *,
    packed: bool | None = None,
) -> Result:
    """Measure for about `seconds` seconds for each row, on an image of `size` bytes made in `folder`.

    Over `packed` rings, which need revision 1, if they are to be had and nothing else is said; the VIO server has a
    physical adapter, as it has by default in a system. `progress` is told what is done now and how much of all is done,
    from 0 to 1. Raises `LocalError`.
    """
    if packed is None:
        packed = revision > 0
    elif packed and revision == 0:
        raise LocalError("packed rings need revision 1")
    tell = progress or (lambda what, part: None)
    try:
        place = folder or default_folder()
        with scratch_folder("powervio-bench-", place) as own:
            return _measure(own, size, seconds, revision, tell, packed=packed)
    except OSError as error:
        raise LocalError(f"the benchmark failed: {error}") from error


def _measure(
    folder: Path, size: int, seconds: float, revision: int, tell: Callable[[str, float], None], *, packed: bool
) -> Result:
    path = folder / "numbered.img"
    tell(f"making an image of {size >> 20} MiB in {folder}", 0.0)
    write_numbered(path, size)
    with open_image(path, read_only=True) as image:
        _read_all(image)
        tell("counting calls", 0.0)
        costs = count_costs(image, revision, packed=packed, redirect=True)
        kept = count_costs(image, revision, packed=packed, redirect=True, keep_mapped=True)
        rows = measure_rates(image, seconds, revision, lambda what, part: tell(what, 0.5 * part), packed=packed)
        generated = measure_generated(
            image, path, seconds, _SLICES, revision, lambda what, part: tell(what, 0.5 + 0.5 * part), packed=packed
        )
    return Result(
        revision,
        "packed" if packed else "split",
        size,
        str(folder.parent),
        _compiled.is_compiled(),
        _SLICES,
        seconds / _SLICES,
        rows,
        costs,
        kept,
        generated,
    )


def _read_all(image: Image) -> None:
    """Bring the image into the page cache."""
    buffer = memoryview(bytearray(1 << 20))
    for position in range(0, image.size, len(buffer)):
        image.read_into(position, buffer[: min(len(buffer), image.size - position)])


def measure_rates(
    image: Image,
    seconds: float,
    revision: int,
    tell: Callable[[str, float], None] = lambda what, part: None,
    *,
    schedules: tuple[str, ...] = SCHEDULES,
    styles: tuple[str, ...] = STYLES,
    numbered: bool = True,
    packed: bool = False,
) -> list[Row]:
    """The rates of every combination, `seconds` seconds each. Without `numbered` the data is not looked at."""
    with ExitStack() as stack:
        work: list[tuple[Row, Callable[[float], int], Callable[[], Costs]]] = []
        for schedule in schedules:
            rig = stack.enter_context(Rig(threaded=schedule == "two_threads", redirect_min=REDIRECT_MIN))
            disk = rig.add_disk(image, BlockDriver(), revision=revision, packed=packed)
            for style in styles:
                for depth in DEPTHS:
                    row = Row(schedule, style, depth)
                    kind = BatchReader if style == "batch" else AwaitReader
                    reader = kind(disk, depth, numbered=numbered)
                    stack.callback(reader.close)
                    work.append((row, reader.run_for, disk.costs))
        for _, run, _ in work:
            run(0.0)  # what is made at the first request is no cost of a request
        with _no_collection():
            for slice_number in range(_SLICES):
                for number, (row, run, costs) in enumerate(work):
                    part = (slice_number + number / len(work)) / _SLICES
                    tell(f"{row.schedule.replace('_', ' ')}, {row.style}, depth {row.depth}", part)
                    before, began = costs(), time.perf_counter()
                    done = run(seconds / _SLICES)
                    row.add(done, time.perf_counter() - began, costs() - before)
        return [row for row, _, _ in work]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without pauses of the garbage collector, which hit a slice here and a slice there."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
