"""The demo with a real client: a stock Linux kernel in QEMU, whose own block driver works on our disks over CRQ.

The guest reads an image, mounts it, copies it to a second disk and reads blocks of 4 KiB around the page cache. It says
what it does in lines; between two of them the cost ledgers are read here, while the guest's disks are at rest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from powervio.bench.cost import cost_of
from powervio.bench.folder import scratch_folder
from powervio.bench.rig import costs_of
from powervio.boot import run
from powervio.boot.guest import Terminal
from powervio.boot.machine import Arch
from powervio.boot.processes import Disk
from powervio.boot.transport import Served
from powervio.errors import LocalError
from powervio.evaluate.demo import Demo, Programs, Report, Watcher
from powervio.phyp.ledger import Costs
from powervio.system.booted import CRQ, GUEST, VIOS, Session, started
from powervio.system.threaded import ThreadedSystem

WORK_LIMIT = 256 << 20
"""Bytes of an image that are worked on: an emulated processor computes digests slowly."""
MEMORY = 512 << 20
"""Bytes of the guest's."""
TIME_LIMIT = 600.0
"""Seconds for all of the guest."""
DEPTHS = (1, 8)
"""How many processes of the guest read at once while costs are counted, each one block at a time."""
_READS = 512
"""Blocks that are read for a count, at most."""
_BLOCK = 4096
_REST = 0.5
"""Seconds between what is said and what is done next: the ledgers are read in them."""

_SCRIPT = """\
tell() {{ sleep {rest}; echo "$@"; sleep {rest}; }}
tell begin
echo read $(head -c {work} /dev/vda | sha256sum)
if mount -t ext4 -o ro,noload /dev/vda /mnt 2>/dev/null; then
    echo files $(find /mnt -type f | wc -l)
    umount /mnt
fi
echo 3 >/proc/sys/vm/drop_caches
head -c {work} /dev/vda >/dev/vdb && sync && tell copied
for depth in {depths}; do
    each=$(({reads} / depth))
    [ $each -gt 0 ] || continue
    tell from $depth
    for reader in $(seq 0 $((depth - 1))); do
        dd if=/dev/vda of=/dev/null bs={block} skip=$((reader * each)) count=$each iflag=direct 2>/dev/null &
    done
    wait
    tell to $depth
done
"""


@dataclass(slots=True)
class GuestReport:
    """What the demo found, and in which guest."""

    arch: str
    report: Report
    steps: list[str] = field(default_factory=list)
    """What was done to boot it."""
    files: int | None = None
    """That the guest found in the file system, if there is one."""

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        unknown = ("handshake", "iops", "read_bytes_per_second", "write_bytes_per_second")
        known = {name: value for name, value in self.report.as_json().items() if name not in unknown}
        return {**known, "guest": self.arch, "files": self.files, "boot": self.steps}


def run_guest_demo(programs: Programs, image: Path | None, arch: Arch, cache: Path, watcher: Watcher) -> GuestReport:
    """Do all of it. Raises `LocalError` for what keeps the demo from being done. To be called in the main thread."""
    began = time.monotonic()
    found = GuestReport(arch.name, Report())
    try:
        with scratch_folder("powervio-demo-") as folder:
            _GuestDemo(programs, image, folder, found, watcher, arch, cache).run()
    except OSError as error:
        raise LocalError(f"the demo failed: {error}") from error
    found.report.seconds = time.monotonic() - began
    return found


class _GuestDemo(Demo):
    def __init__(
        self,
        programs: Programs,
        image: Path | None,
        folder: Path,
        found: GuestReport,
        watcher: Watcher,
        arch: Arch,
        cache: Path,
    ) -> None:
        super().__init__(programs, image, folder, found.report, watcher)
        self.limit = WORK_LIMIT
        self.found = found
        self.arch = arch
        self.cache = cache
        self.running: ThreadedSystem | None = None
        self._before = (Costs(), 0)

    def use(self, path: Path, scratch: Path) -> None:
        """Boot the guest, and let it work."""
        script = _SCRIPT.format(
            rest=_REST,
            work=self.work,
            depths=" ".join(map(str, DEPTHS)),
            reads=min(_READS, self.work // _BLOCK),
            block=_BLOCK,
        )
        with ExitStack() as undo:
            reading, writing = os.pipe()
            lines = undo.enter_context(os.fdopen(reading, "r", errors="replace"))
            listener = threading.Thread(target=self._listen, args=(lines,), daemon=True)
            listener.start()
            try:
                plan = run.Plan(
                    arch=self.arch,
                    memory=MEMORY,
                    cache=self.cache,
                    transport=replace(CRQ, serve=self._serve),
                    disks=(Disk(str(path), read_only=True, format="raw"), Disk(str(scratch), format="raw")),
                    command=script,
                    timeout=TIME_LIMIT,
                )
                status = run.run(plan, self._step, Terminal(0, writing), errors=2)
            finally:
                os.close(writing)
                listener.join()
        if status:
            raise LocalError(f"the guest's work ended with status {status}")
        self.report.bytes_read += self.work
        self.report.bytes_written += self.work

    def count(self, path: Path) -> None:
        """It was counted while the guest was there."""

    def _step(self, text: str) -> None:
        self.found.steps.append(text)
        self.watcher.note(text)

    @contextmanager
    def _serve(self, arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
        with started(arch, memory, disks) as running, closing(Session(running.door(GUEST))) as session:
            self.running = running
            yield session.served()
            self.report.rdma_bytes = sum(
                disk.server_adapter.ledger.snapshot()["rdma_bytes"] for disk in running.system.disks
            )

    # -- in the thread that listens to the guest

    def _listen(self, lines: Iterable[str]) -> None:
        said: dict[str, Callable[[list[str]], None]] = {
            "begin": lambda words: None,
            "read": self._was_read,
            "files": self._has_files,
            "copied": lambda words: self.watcher.note("the guest wrote it to a second disk, and synced"),
            "from": lambda words: self._mark(),
            "to": self._counted,
        }
        for line in lines:
            word, *words = line.split() or [""]
            if word in said:
                said[word](words)

    def _was_read(self, words: list[str]) -> None:
        self.report.read_matches = words[:1] == [self.report.digest]
        verdict = "equal" if self.report.read_matches else "DIFFERENT"
        self.watcher.note(f"the guest read the image ({self.work >> 20} MiB): sha256 {verdict}")
        self.report.bytes_read += self.work
        assert self.running is not None
        self.report.revision = self.running.system.disks[0].server.revision or 0  # it ends with the guest

    def _has_files(self, words: list[str]) -> None:
        self.found.files = int(words[0])
        self.watcher.note(f"the guest mounted it: {words[0]} files")

    def _mark(self) -> None:
        self._before = self._now()

    def _counted(self, words: list[str]) -> None:
        costs, requests = self._now()
        if requests > self._before[1]:
            self.report.costs[int(words[0])] = cost_of(costs - self._before[0], requests - self._before[1])

    def _now(self) -> tuple[Costs, int]:
        """What everything has cost so far, and how many requests the first disk has served."""
        assert self.running is not None
        system = self.running.system
        disk = system.disks[0]
        partitions = [system.partitions[name].ledger for name in (VIOS, GUEST)]
        return costs_of([disk.server_adapter.ledger, disk.client_adapter.ledger, *partitions]), disk.device.requests
