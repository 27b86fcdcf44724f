"""`powervio bench guest`: a stock kernel's disk over CRQ beside the same guest's disk over vhost-user.

One guest has both: one served by phyp and a VIO server in this process, one by QEMU's storage daemon. A program in the
guest reads blocks of 4 KiB at random around the guest's page cache, from one disk and then from the other, round by
round; who begins changes. A ratio is that of two slices of a round, the figure is the median of the rounds. Every block
has to carry its own number; neighbours are not merged into one request. The hypervisor's ledgers are read while both
disks are at rest.

Measured twice, in two guests: with shared TCE tables, and with a hypervisor call for every mapping.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from powervio.bench import machine
from powervio.bench.back_ends import GuestBackEnd, Image, Kind, peer_version, peers
from powervio.bench.conducted import LISTEN, MEMORY, Beside, ConductedGuest, Count, Tell
from powervio.bench.cost import DEPTHS, cost_of
from powervio.bench.folder import scratch_folder
from powervio.bench.images import filesystem
from powervio.bench.reads import write_numbered
from powervio.bench.talk import Talk
from powervio.boot import qemu
from powervio.boot.guest import BOOT_LIMIT
from powervio.boot.machine import Arch
from powervio.boot.processes import Disk
from powervio.boot.programs import GUEST_IO
from powervio.errors import LocalError
from powervio.phyp.ledger import CostLedger, Costs
from powervio.system.config import POLL

ROUNDS = 7
PEERS = ("threads", "threads+iothread", "io_uring", "io_uring+iothread")
"""Configurations of the storage daemon."""
OURS, THEIRS = "crq", "vhost-user"
SLACK = 30.0
"""Seconds that a slice may take longer than it is told to."""
_WARM_UP = 0.2
_QUIET = 0.02
"""Seconds without a hypervisor call after which all are counted."""
_COUNTS = ("crq_messages", "interrupts", "tce_updates", "shared_tce_updates")

_SCRIPT = f"""\
{LISTEN}\
for device in /sys/bus/virtio/devices/*; do
    if [ "$(cat $device/device)" = 0x0002 ] && [ ! -e $device/driver ]; then
        echo ${{device##*/}} >/sys/bus/virtio/drivers/virtio_blk/bind
    fi
done
echo kernel $(uname -r) >&6
for disk in /sys/block/vd*; do
    echo 2 >$disk/queue/nomerges
    echo disk ${{disk##*/}} $(readlink $(readlink -f $disk/device/..)/driver) >&6
done
echo ready >&6
while read -r words <&6; do
    [ "$words" = end ] && exit 0
    guest_io $words >&6 2>&1 || exit 1
done
exit 1
"""


@dataclass(frozen=True, slots=True)
class Mode:
    """One guest."""

    name: str
    what: str
    driver_options: tuple[str, ...] = ()
    wanted: bool = False
    """Whether there are ratios that it has to reach."""


MODES = (
    Mode("shared", "TCE tables in shared memory", wanted=True),
    Mode("hcalls", "hypervisor calls only, no shared TCE table", ("shared_tce=0",)),
)
WANTED = {"x86_64": {1: 0.8, 32: 0.6}, "ppc64le": {1: 0.8, 32: 0.8}}
"""By architecture and depth: what the ratio has to be at least, with shared tables."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one disk did in one slice."""

    reads: int
    """Each carried its block's number."""
    seconds: float
    """By the guest's clock."""
    others: float
    """Processors that were busy for anybody else meanwhile, or stolen; coarse."""

    @property
    def rate(self) -> float:
        """Reads per second."""
        return self.reads / self.seconds

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {"iops": round(self.rate), "reads": self.reads, "seconds": self.seconds, "others": self.others}


@dataclass(slots=True)
class Row:
    """One depth in one guest."""

    depth: int
    wanted: float | None
    pairs: list[tuple[Slice, Slice]] = field(default_factory=list)
    """Of each round, over CRQ and over vhost-user."""
    costs: Costs = field(default_factory=lambda: CostLedger().snapshot())
    requests: int = 0
    """That the VIO server served while these were counted."""

    @property
    def ratios(self) -> list[float]:
        """Of each round."""
        return [ours.rate / theirs.rate for ours, theirs in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)

    @property
    def rates(self) -> tuple[float, float]:
        """Medians, over CRQ and over vhost-user."""
        return median(pair[0].rate for pair in self.pairs), median(pair[1].rate for pair in self.pairs)

    @property
    def counts(self) -> dict[str, float]:
        """Of one read: hypervisor calls and remote copies (sums), and what the ledger has beside calls."""
        cost = cost_of(self.costs, self.requests)
        found = {"hcalls": cost.hcalls["total"], "remote_copies": cost.remote_copies["total"]}
        return found | {name: round(self.costs[name] / self.requests, 4) for name in _COUNTS}

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "depth": self.depth,
            "crq_iops": round(self.rates[0]),
            "vhost_user_iops": round(self.rates[1]),
            "ratio": round(self.ratio, 3),
            "wanted_ratio": self.wanted,
            "rounds": [
                {"crq": ours.as_json(), "vhost_user": theirs.as_json(), "ratio": round(ours.rate / theirs.rate, 3)}
                for ours, theirs in self.pairs
            ],
            "requests": self.requests,
            "each": {**self.counts, "hcalls_by_name": cost_of(self.costs, self.requests).hcalls},
        }


@dataclass(slots=True)
class Measured:
    """One guest, and what came of it."""

    mode: Mode
    rows: list[Row]
    kernel: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "guest": self.mode.name,
            "what": self.mode.what,
            "driver_options": list(self.mode.driver_options),
            "kernel": self.kernel,
            "rows": [row.as_json() for row in self.rows],
        }


@dataclass(slots=True)
class Result:
    """What a run measured, and under which conditions."""

    conditions: dict[str, object]
    guests: list[Measured]

    @property
    def _slices(self) -> list[Slice]:
        return [one for guest in self.guests for row in guest.rows for pair in row.pairs for one in pair]

    @property
    def verified_reads(self) -> int:
        """Reads in slices; each carried its block's number."""
        return sum(one.reads for one in self._slices)

    @property
    def others(self) -> float:
        """Processors that were busy for anybody else, on average of all slices."""
        return sum(one.others * one.seconds for one in self._slices) / sum(one.seconds for one in self._slices)

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        return {
            "conditions": self.conditions,
            "others": round(self.others, 3),
            "verified_reads": self.verified_reads,
            "guests": [guest.as_json() for guest in self.guests],
        }


def measure(
    arch: Arch,
    cache: Path,
    rounds: int,
    seconds: float,
    size: int,
    folder: Path,
    peer: str,
    progress: Callable[[str, float], None] | None = None,
) -> Result:
    """Measure `rounds` rounds with slices of `seconds` seconds, on images of `size` bytes made in `folder`.

    `cache` is that of `powervio boot`. `progress` is told what is done now and how much of all is done, from 0 to 1. To
    be called in the main thread. Raises `LocalError`.
    """
    tell = progress or (lambda what, part: None)
    version = peer_version()
    kind = next(kind for kind in peers(direct=False) if kind.name == peer)
    conditions = machine.conditions() | {
        "arch": arch.name,
        "memory": MEMORY,
        "peer": version,
        "peer_configuration": peer,
        "poll_us": POLL,
        "image_bytes": size,
        "filesystem": filesystem(folder),
        "rounds": rounds,
        "slice_seconds": seconds,
    }
    guests = []
    try:
        with scratch_folder("powervio-bench-", folder) as images, scratch_folder("powervio-bench-") as sockets:
            numbered = images / "crq.img", images / "vhost-user.img"
            write_numbered(numbered[0], size)
            shutil.copyfile(*numbered)
            for number, mode in enumerate(MODES):

                def say(what: str, part: float, mode: Mode = mode, number: int = number) -> None:
                    tell(f"{mode.name}: {what}", (number + part) / len(MODES))

                own = sockets / mode.name
                own.mkdir()
                guests.append(_Guest(arch, mode, rounds, seconds, kind, numbered, own, say).measure(cache))
    except OSError as error:
        raise LocalError(f"the benchmark failed: {error}") from error
    conditions["load_average_after"] = machine.load_average()
    return Result(conditions, guests)


class _Guest(ConductedGuest):
    """One guest from power on to its end."""

    script = _SCRIPT

    def __init__(
        self,
        arch: Arch,
        mode: Mode,
        rounds: int,
        seconds: float,
        kind: Kind,
        images: tuple[Path, Path],
        folder: Path,
        tell: Tell,
    ) -> None:
        super().__init__(arch, tell)
        self._rounds = rounds
        self._seconds = seconds
        self._kind = kind
        self._images = images
        self._folder = folder
        self._found = Measured(
            mode, [Row(depth, WANTED[arch.name][depth] if mode.wanted else None) for depth in DEPTHS]
        )

    def measure(self, cache: Path) -> Measured:
        """Boot it and let it read; raises `LocalError`."""
        slices = 2 * len(DEPTHS) * (self._rounds + 1)
        self.boot(
            cache,
            slices * (self._seconds + 1) + SLACK,
            disks=(Disk(str(self._images[0]), read_only=True, format="raw"),),
            programs=(GUEST_IO,),
            driver_options=self._found.mode.driver_options,
        )
        return self._found

    @contextmanager
    def beside(self) -> Iterator[Beside]:
        """The storage daemon."""
        with closing(GuestBackEnd(self._kind, Image(self._images[1]), self._folder)) as peer:
            yield Beside(qemu.vhost_user_options([peer.connection.fileno()]), [peer.connection], [peer])

    def conduct(self, talk: Talk, count: Count) -> None:
        """Every round."""
        self._found.kernel, disks = hear_hello(talk.line, BOOT_LIMIT + SLACK)
        for depth in DEPTHS:
            for name in (OURS, THEIRS):
                self._slice(talk, disks[name], depth, min(self._seconds, _WARM_UP))
        for turn in range(self._rounds):
            for number, row in enumerate(self._found.rows):
                part = (turn + number / len(DEPTHS)) / self._rounds
                self.tell(f"round {turn + 1} of {self._rounds}, depth {row.depth}", part)
                self._round(talk, disks, row, count, ours_first=turn % 2 == 0)

    def _round(
        self,
        talk: Talk,
        disks: dict[str, str],
        row: Row,
        count: Count,
        *,
        ours_first: bool,
    ) -> None:
        theirs = None if ours_first else self._slice(talk, disks[THEIRS], row.depth, self._seconds)
        before = _settled(count)
        ours = self._slice(talk, disks[OURS], row.depth, self._seconds)
        after = _settled(count)
        requests = after[1] - before[1]
        if not ours.reads <= requests <= ours.reads + row.depth:  # what is in flight at the end is not waited for
            raise LocalError(f"the guest says that it has read {ours.reads} blocks, the VIO server served {requests}")
        row.costs += after[0] - before[0]
        row.requests += requests
        row.pairs.append((ours, theirs or self._slice(talk, disks[THEIRS], row.depth, self._seconds)))

    def _slice(self, talk: Talk, disk: str, depth: int, seconds: float) -> Slice:
        others = machine.Others()
        talk.say(f"/dev/{disk} numbers {depth} {round(seconds * 1000)}")
        reads, taken = parse_reads(talk.line(seconds + SLACK))
        return Slice(reads, taken, others.so_far())


def hear_hello(line: Callable[[float], str], limit: float) -> tuple[str, dict[str, str]]:
    """What a guest says first: its kernel, and the name of the disk over CRQ and of the one over vhost-user.

    Raises `LocalError` if it has not one of each.
    """
    kernel, found = "", {}
    while (said := line(limit)) != "ready":
        match said.split():
            case ["kernel", kernel]:
                pass
            case ["disk", name, driver]:
                found[OURS if driver.endswith("/virtio_vio") else THEIRS] = name
            case _:
                raise LocalError(f"the guest says {said!r}")
    if missing := {OURS, THEIRS} - found.keys():
        raise LocalError(f"the guest has no disk over {' and '.join(sorted(missing))}")
    return kernel, found


def parse_reads(line: str) -> tuple[int, float]:
    """Reads, and the seconds that they took, of what `guest_io` says. Raises `LocalError` with what it complains of."""
    said = re.fullmatch(r"(\d+) (\d+)", line)
    if said is None or not int(said[1]) or not int(said[2]):
        raise LocalError(f"reading in the guest: {line}")
    return int(said[1]), int(said[2]) / 1e6


def _settled(count: Count) -> tuple[Costs, int]:
    """The counts, when nothing is counted any more."""
    limit = time.monotonic() + SLACK
    found = count()
    while time.monotonic() < limit:
        time.sleep(_QUIET)
        now = count()
        if now == found:
            return now
        found = now
    raise LocalError(f"hypervisor calls went on for {SLACK:.0f} s with nothing to do")
