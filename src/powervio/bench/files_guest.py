"""The guest's part of `powervio bench files`: a folder over CRQ beside the same folder by QEMU's own virtio-9p.

One stock guest has both mounted by its kernel's 9p, with the same options: one served by a VIO server in this process
behind phyp, one by QEMU (`-fsdev local`). Programs of busybox work in one and then in the other, round by round; who
begins changes. A ratio is that of two slices of a round, the figure is the median of the rounds. After the last round
both folders have to be equal.
"""

from __future__ import annotations

import filecmp
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from powervio.bench import machine
from powervio.bench.conducted import LISTEN, MEMORY, Beside, ConductedGuest, Count, Tell
from powervio.bench.cost import cost_of
from powervio.bench.folder import scratch_folder
from powervio.bench.images import filesystem
from powervio.bench.talk import Talk
from powervio.boot import qemu
from powervio.boot.guest import BOOT_LIMIT
from powervio.boot.machine import Arch
from powervio.errors import LocalError
from powervio.phyp.ledger import CostLedger, Costs
from powervio.system.booted import BootShare
from powervio.virtio.p9 import LINUX_MSIZE

ROUNDS = 5
WANTED = 0.8
"""What each ratio has to be at least."""
OURS, THEIRS = "crq", "virtfs"
"""Mount tags, and what both are called."""
LIMIT = 60.0
"""Seconds that one slice may take."""
OPTIONS = f"trans=virtio,version=9p2000.L,msize={LINUX_MSIZE},cache=none"
LARGE = 48 << 20
"""Bytes of the file that is read, and of what is written."""
_FOLDERS = 24
_FILES = 20
"""In each folder."""

_SCRIPT = f"""\
{LISTEN}\
for tag in {OURS} {THEIRS}; do
    mkdir -p /mnt/$tag
    for number in $(seq 100); do
        mount -t 9p -o {OPTIONS} $tag /mnt/$tag 2>/dev/null && break
        sleep 0.1
    done
    grep -q " /mnt/$tag 9p " /proc/mounts && echo mounted $tag >&6
done
echo ready $(uname -r) >&6
while read -r words <&6; do
    [ "$words" = end ] && break
    if eval "$words" >/tmp/said 2>&1; then echo done >&6; else echo failed $(head -c 200 /tmp/said) >&6; fi
done
umount /mnt/{OURS} /mnt/{THEIRS}
"""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work. `command` is for the guest's shell, in `@`; `before` makes it possible, and is not measured."""

    name: str
    what: str
    command: str
    amount: float
    unit: str
    before: str = ""
    wanted: float | None = WANTED


_COUNT = _FOLDERS * (_FILES + 1) + 1
_PIECE = 480 << 10
_PIECES = LARGE // _PIECE
WORKS = (
    Work("read", "a file from end to end, 480 KiB at a time", "dd if=@/big of=/dev/null bs=491520",
         LARGE / 1e6, "MB/s"),
    Work("write", "a file, 480 KiB at a time", f"dd if=/dev/zero of=@/new bs=491520 count={_PIECES}",
         _PIECES * _PIECE / 1e6, "MB/s"),
    Work("small-reads", "4 KiB at a time", "dd if=@/big of=/dev/null bs=4096 count=2048", 2048, "reads/s"),
    Work("attributes", "find: every entry's attributes", "find @/tree -size +99999999c", _COUNT, "entries/s"),
    Work("archive", "tar: every small file read", "tar cf - @/tree | cat >/dev/null", _COUNT, "entries/s"),
    Work("copy", "cp -a: a tree of small files", "cp -a @/tree @/copy", _COUNT, "entries/s",
         "rm -rf @/copy"),
    Work("remove", "rm -r of that", "rm -r @/copy", _COUNT, "entries/s",
         "[ -d @/copy ] || cp -a @/tree @/copy"),
)  # fmt: skip


@dataclass(slots=True)
class Row:
    """One kind of work."""

    work: Work
    pairs: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of each round, over CRQ and by QEMU."""
    costs: Costs = field(default_factory=lambda: CostLedger().snapshot())
    messages: int = 0
    """9P messages over CRQ."""

    @property
    def ratios(self) -> list[float]:
        """Speed over CRQ by that of QEMU, of each round."""
        return [theirs / ours for ours, theirs in self.pairs]

    @property
    def ratio(self) -> float:
        """The median."""
        return median(self.ratios)

    @property
    def rates(self) -> tuple[float, float]:
        """Medians, over CRQ and by QEMU."""
        ours, theirs = (median(self.work.amount / pair[end] for pair in self.pairs) for end in (0, 1))
        return ours, theirs

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "work": self.work.name,
            "what": self.work.what,
            "unit": self.work.unit,
            "crq": round(self.rates[0], 1),
            "virtfs": round(self.rates[1], 1),
            "ratio": round(self.ratio, 3),
            "wanted_ratio": self.work.wanted,
            "rounds": [round(ratio, 3) for ratio in self.ratios],
            "messages": self.messages,
            "each": cost_of(self.costs, max(1, self.messages)).hcalls,
        }


@dataclass(slots=True)
class Result:
    """What a run measured, and under which conditions."""

    conditions: dict[str, object]
    others: float
    """Processors that were busy for anybody else, on average of all rounds."""
    rows: list[Row]

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        return {
            "conditions": self.conditions,
            "others": self.others,
            "rows": [row.as_json() for row in self.rows],
        }


def measure(
    arch: Arch,
    cache: Path,
    rounds: int,
    folder: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
    *,
    works: Sequence[Work] = WORKS,
) -> Result:
    """Measure `rounds` rounds of each work with folders made in `folder`. `cache` is that of `powervio boot`.

    To be called in the main thread. Raises `LocalError`.
    """
    tell = progress or (lambda what, part: None)
    with scratch_folder("powervio-bench-", folder) as place:
        ends = place / OURS, place / THEIRS
        fill(ends[0])
        shutil.copytree(*ends)
        conditions = machine.conditions() | {
            "arch": arch.name,
            "memory": MEMORY,
            "mount": OPTIONS,
            "filesystem": filesystem(place),
            "rounds": rounds,
        }
        guest = _Guest(arch, rounds, works, ends, tell)
        guest.measure(cache)
        conditions["guest_kernel"] = guest.kernel
        compare(*ends)
    conditions["load_average_after"] = machine.load_average()
    return Result(conditions, guest.others, guest.rows)


def fill(folder: Path) -> None:
    """Make a large file, and a tree of small ones, the same every time."""
    numbers = random.Random(9)
    folder.mkdir()
    with open(folder / "big", "wb") as file:
        for _ in range(LARGE >> 20):
            file.write(numbers.randbytes(1 << 20))
    for one in range(_FOLDERS):
        inner = folder / "tree" / f"folder{one}"
        inner.mkdir(parents=True)
        for number in range(_FILES):
            (inner / f"file{number}").write_bytes(numbers.randbytes(numbers.choice((0, 100, 3000, 9000, 30_000))))


def compare(ours: Path, theirs: Path) -> None:
    """See that what was done in both folders came to the same. Raises `LocalError`."""
    seen = filecmp.dircmp(ours, theirs)
    names = [str(path.relative_to(ours)) for path in sorted(ours.rglob("*")) if path.is_file()]
    _, other, failed = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if seen.left_only or seen.right_only or other or failed:
        raise LocalError(f"the folders are not equal: {[*seen.left_only, *seen.right_only, *other, *failed][:5]}")


class _Guest(ConductedGuest):
    """One guest from power on to its end."""

    script = _SCRIPT

    def __init__(self, arch: Arch, rounds: int, works: Sequence[Work], ends: tuple[Path, Path], tell: Tell) -> None:
        super().__init__(arch, tell)
        self.rows = [Row(work) for work in works]
        self.kernel = ""
        self.others = 0.0
        self._rounds = rounds
        self._ends = ends

    def measure(self, cache: Path) -> None:
        """Boot it and let it work. Raises `LocalError`."""
        seconds = 2 * (self._rounds + 1) * len(self.rows) * LIMIT
        self.boot(cache, seconds, shares=[BootShare(str(self._ends[0]), OURS)])

    @contextmanager
    def beside(self) -> Iterator[Beside]:
        """QEMU's own device."""
        yield Beside(qemu.virtfs_options(str(self._ends[1]), THEIRS))

    def conduct(self, talk: Talk, count: Count) -> None:
        """Every round."""
        mounted = set()
        while (said := talk.line(BOOT_LIMIT + LIMIT).split())[0] == "mounted":
            mounted.add(said[1])
        if mounted != {OURS, THEIRS}:
            raise LocalError(f"the guest could not mount {' and '.join(sorted({OURS, THEIRS} - mounted))}")
        self.kernel = said[1]
        others = machine.Others()
        for turn in range(-1, self._rounds):  # the first one is for warming up
            for number, row in enumerate(self.rows):
                self.tell(
                    f"round {turn + 1} of {self._rounds}, {row.work.name}",
                    (turn + 1 + number / len(self.rows)) / (self._rounds + 1),
                )
                self._round(talk, row, count, turn)
        self.others = others.so_far()

    def _round(self, talk: Talk, row: Row, count: Count, turn: int) -> None:
        seconds = {}
        for name in (OURS, THEIRS) if turn % 2 else (THEIRS, OURS):
            if row.work.before:
                _do(talk, row.work.before, row, name)
            before = count()
            begin = time.monotonic()
            _do(talk, row.work.command, row, name)
            seconds[name] = time.monotonic() - begin
            if name == OURS and turn >= 0:
                after = count()
                row.costs += after[0] - before[0]
                row.messages += after[1] - before[1]
        if turn >= 0:
            row.pairs.append((seconds[OURS], seconds[THEIRS]))


def _do(talk: Talk, command: str, row: Row, name: str) -> None:
    talk.say(command.replace("@", f"/mnt/{name}"))
    said = talk.line(LIMIT)
    if said != "done":
        raise LocalError(f"{row.work.name} in the guest's {name}: {said}")
