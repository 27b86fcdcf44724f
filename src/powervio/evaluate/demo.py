"""The main job, shown in seconds: a guest partition works on a real disk image through virtio over CRQ.

It starts a hypervisor, a VIO server and a client; lets them configure a disk; reads an image through it and compares
digests with the file; writes the image to a second disk, discards, zeroes and writes again; lets e2fsck judge; counts
what a request costs. Every byte goes driver - ring - CRQ - server - image file; the file itself is read here only for
its digest.

Nothing is printed here: `Watcher` is told what happens.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from powervio import _compiled
from powervio.bench.cost import Cost, count_costs
from powervio.bench.crq import measure_rates
from powervio.bench.folder import scratch_folder
from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.evaluate import filesystem
from powervio.evaluate.handshake import HandshakeRecorder, Step
from powervio.storage.image import SECTOR, Image, open_image
from powervio.virtio.queue import Buffer

WORK_LIMIT = 1 << 30
"""Bytes of an image that are worked on; what is beyond is left alone, and that is said."""

_CHUNK = 256 * 1024
_DEPTH = 8
"""Chunks in flight while an image is read or copied."""
_RATE_SECONDS = 0.25
_SPARE = 64 << 20
"""Bytes that are left free in the folder of the scratch disk."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where e2fsprogs are; None for what is missing."""

    mke2fs: str | None
    e2fsck: str | None


class Watcher:
    """What is told while the demo runs; this one listens to nothing."""

    def handshake(self, revision: int, steps: list[Step]) -> None:
        """The first disk is configured."""

    def note(self, text: str) -> None:
        """One thing was done, or has to be known."""

    def begin(self, what: str, total: int) -> None:
        """Work on `total` bytes begins."""

    def advance(self, count: int) -> None:
        """So many bytes more are done."""

    def end(self, result: str) -> None:
        """The work that began last is done."""


@dataclass(slots=True)
class Report:
    """What the demo found."""

    revision: int = 0
    image: str = ""
    image_bytes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    """Bytes of data that the client wrote; zeroes are not among them."""
    rdma_bytes: int = 0
    """Bytes that remote DMA moved for all of this, rings and headers too."""
    handshake: list[str] = field(default_factory=list)
    read_matches: bool = False
    """Whether the image as the client read it has the file's digest."""
    written_matches: bool = False
    """Whether the second disk's file has it at the end."""
    fsck_clean: bool | None = None
    """None when there is no ext file system to check."""
    fsck_says: str = ""
    image_was_clean: bool | None = None
    """Of a user's image whose copy is not clean: whether it was clean itself."""
    discarded: bool = False
    """Whether discard was among the work: the scratch disk's file system may not have it."""
    digest: str = ""
    costs: dict[int, Cost] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    """4 KiB random reads per second by depth, batch interface, both partitions in one thread."""
    read_rate: float = 0.0
    """Bytes per second of reading the image."""
    write_rate: float = 0.0
    """Bytes per second of writing it to the second disk, which reads it again."""
    seconds: float = 0.0
    compiled: bool = field(default_factory=_compiled.is_compiled)
    """Whether the hot path ran compiled."""

    @property
    def digest_match(self) -> bool:
        """Whether everything read and written was right."""
        return self.read_matches and self.written_matches

    @property
    def failures(self) -> list[str]:
        """What was not as it must be, a sentence each; empty if all is well."""
        found = []
        if not self.read_matches:
            found.append("what the client read is not what the image file holds")
        if not self.written_matches:
            found.append("what the client wrote is not in the second disk's file")
        if self.fsck_clean is False and self.image_was_clean is not False:
            found.append(f"e2fsck is not content with the copy: {self.fsck_says}")
        return found

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        return {
            "digest_match": self.digest_match,
            "fsck_clean": self.fsck_clean,
            "revision": self.revision,
            "compiled": self.compiled,
            "handshake": self.handshake,
            "hcalls_per_request": {f"qd{depth}": cost.hcalls for depth, cost in self.costs.items()},
            "remote_copies_per_request": {f"qd{depth}": cost.remote_copies for depth, cost in self.costs.items()},
            "iops": {f"qd{depth}": round(rate) for depth, rate in self.rates.items()},
            "read_bytes_per_second": round(self.read_rate),
            "write_bytes_per_second": round(self.write_rate),
            "image": self.image,
            "image_bytes": self.image_bytes,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "rdma_bytes": self.rdma_bytes,
            "sha256": self.digest,
            "discarded": self.discarded,
            "seconds": round(self.seconds, 2),
            "failures": self.failures,
        }


def run_demo(programs: Programs, image: Path | None, revision: int, watcher: Watcher) -> Report:
    """Do all of it. Raises `LocalError` for what keeps the demo from being done; `Report.failures` is the verdict."""
    began = time.monotonic()
    report = Report(revision=revision)
    try:
        with scratch_folder("powervio-demo-") as folder:
            Demo(programs, image, folder, report, watcher).run()
    except OSError as error:
        raise LocalError(f"the demo failed: {error}") from error
    report.seconds = time.monotonic() - began
    return report


class Demo:
    """The parts, with a client of powervio's own."""

    def __init__(self, programs: Programs, image: Path | None, folder: Path, report: Report, watcher: Watcher) -> None:
        self.programs = programs
        self.image = image
        self.folder = folder
        self.report = report
        self.watcher = watcher
        self.limit = WORK_LIMIT
        self.work = 0
        """Bytes that are worked on."""

    def run(self) -> None:
        """All parts in order."""
        path = self.image or self._make_image()
        scratch = self.folder / "disk2.img"
        with open_image(path, read_only=True) as source:
            if not source.size:
                raise LocalError(f"image {path} is empty: there is nothing to read")
            self.work = min(source.size, self.limit)
            self.report.image = "the project's files as ext4" if self.image is None else str(path)
            self.report.image_bytes = source.size
            self._check_room()
            if self.work < source.size:
                self.watcher.note(
                    f"{path} has {source.size} bytes; only the first {self.limit >> 20} MiB are worked on"
                )
            self.report.digest = _digest(path, self.work)
        open_image(scratch, create_size=self.work).close()
        self.use(path, scratch)
        self.report.written_matches = _digest(scratch, self.work) == self.report.digest
        self.watcher.note(f"second disk's file: sha256 {'equal' if self.report.written_matches else 'DIFFERENT'}")
        self._check_file_system(path, scratch)
        self.count(path)

    def _make_image(self) -> Path:
        mke2fs = self.programs.mke2fs
        if mke2fs is None or self.programs.e2fsck is None:
            raise LocalError(
                f"mke2fs and e2fsck are needed to make an image and are not here: apt-get install {filesystem.PACKAGE}"
                " (or bring an image: --image FILE)"
            )
        path = self.folder / "disk1.img"
        count, total = filesystem.make_image(mke2fs, path)
        self.watcher.note(
            f"mke2fs made an ext4 image of {path.stat().st_size >> 20} MiB from {count} files of the project"
            f" ({total / (1 << 20):.1f} MiB)"
        )
        return path

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < self.work + _SPARE:
            raise LocalError(
                f"{self.folder.parent} has {free >> 20} MiB free; a copy of the image needs {self.work >> 20} MiB and"
                " some more (TMPDIR names another folder)"
            )

    # The two disks

    def use(self, path: Path, scratch: Path) -> None:
        """Read the image, and write it to the second disk."""
        with open_image(path, read_only=True) as source, open_image(scratch) as target:
            self._use_disks(source, target)

    def _use_disks(self, source: Image, target: Image) -> None:
        with Rig(threaded=True) as rig:
            recorder = HandshakeRecorder()
            disk1 = rig.add_disk(source, BlockDriver(buffers=_DEPTH), revision=self.report.revision, recorder=recorder)
            self.report.handshake = recorder.names()
            assert disk1.client.revision is not None
            self.report.revision = disk1.client.revision
            self.watcher.handshake(disk1.client.revision, recorder.steps(disk1.client, disk1.server))
            disk2 = rig.add_disk(target, BlockDriver(buffers=_DEPTH), revision=self.report.revision)
            rig.run(self._work(disk1.driver, disk2.driver))
            # counted at both ends of a connection, so one end has all of it
            self.report.rdma_bytes = sum(disk.server_adapter.ledger.snapshot()["rdma_bytes"] for disk in rig.disks)

    async def _work(self, disk1: BlockDriver, disk2: BlockDriver) -> None:
        report = self.report
        digest = hashlib.sha256()
        began = time.perf_counter()
        self.watcher.begin("read the image back", self.work)
        await self._read(disk1, digest.update)
        report.read_rate = self.work / (time.perf_counter() - began)
        report.read_matches = digest.hexdigest() == report.digest
        self.watcher.end(f"sha256 {'equal' if report.read_matches else 'DIFFERENT'}, {_rate(report.read_rate)}")

        began = time.perf_counter()
        self.watcher.begin("write it to a second disk", self.work)
        await self._copy(disk1, disk2, 0, self.work)
        await disk2.flush()
        report.write_rate = self.work / (time.perf_counter() - began)
        self.watcher.end(f"flushed, {_rate(report.write_rate)}")
        await self._change(disk1, disk2)

    async def _read(self, disk: BlockDriver, take: Callable[[memoryview], object]) -> None:
        """Read all in order, with several chunks in flight."""
        free = deque([await disk.acquire_buffer(_CHUNK) for _ in range(_DEPTH)])
        ahead: deque[tuple[asyncio.Task[None], Buffer, int]] = deque()

        async def oldest() -> None:
            task, buffer, length = ahead[0]
            await task
            ahead.popleft()
            take(buffer.view[:length])
            free.append(buffer)
            self.report.bytes_read += length
            self.watcher.advance(length)

        try:
            for at in range(0, self.work, _CHUNK):
                if not free:
                    await oldest()
                buffer, length = free.popleft(), min(_CHUNK, self.work - at)
                ahead.append((asyncio.create_task(disk.read_buffer(at, buffer, 0, length)), buffer, length))
            while ahead:
                await oldest()
        finally:
            await asyncio.gather(*(task for task, _, _ in ahead), return_exceptions=True)
            for buffer in (*free, *(buffer for _, buffer, _ in ahead)):
                disk.release_buffer(buffer)

    async def _copy(self, source: BlockDriver, target: BlockDriver, begin: int, end: int) -> None:
        """Copy a range from disk to disk, with several chunks in flight."""
        chunks = iter(range(begin, end, _CHUNK))

        async def worker() -> None:
            buffer = await source.acquire_buffer(_CHUNK)
            try:
                for at in chunks:
                    length = min(_CHUNK, end - at)
                    await source.read_buffer(at, buffer, 0, length)
                    # the same memory: it is mapped into the other adapter's window for as long as that request lasts
                    await target.write_buffer(at, buffer, 0, length)
                    self.report.bytes_read += length
                    self.report.bytes_written += length
                    self.watcher.advance(length)
            finally:
                source.release_buffer(buffer)

        outcomes = await asyncio.gather(*(worker() for _ in range(_DEPTH)), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _change(self, disk1: BlockDriver, disk2: BlockDriver) -> None:
        """Discard a range of the second disk and write it again; zero another, look, and write it again."""
        length = min(1 << 20, self.work // 4 // 4096 * 4096)
        if not length:
            return
        size = "1 MiB" if length == 1 << 20 else f"{length >> 10} KiB"
        quarter = self.work // 4 // 4096 * 4096
        if disk2.can_discard:
            await disk2.discard(quarter, length)
            await self._copy(disk1, disk2, quarter, quarter + length)
            self.report.discarded = True
            self.watcher.note(f"discarded {size} of the second disk and wrote it again")
        else:
            self.watcher.note(f"no discard: the file system of {self.folder} has none")
        await disk2.write_zeroes(2 * quarter, length, unmap=True)
        if await disk2.read(2 * quarter, length) != bytes(length):
            raise LocalError(f"{size} at {2 * quarter} of the second disk are not zero after a write of zeroes")
        await self._copy(disk1, disk2, 2 * quarter, 2 * quarter + length)
        await disk2.flush()
        self.watcher.note(f"zeroed {size}, read zeroes there, wrote it again, flushed")

    # What others say

    def _check_file_system(self, path: Path, scratch: Path) -> None:
        report = self.report
        if not filesystem.holds_ext(scratch):
            self.watcher.note("no e2fsck: the image does not begin with an ext2, ext3 or ext4 file system")
        elif self.work < report.image_bytes:
            self.watcher.note("no e2fsck: only a part of the file system was copied")
        elif self.programs.e2fsck is None:
            self.watcher.note(f"no e2fsck here to check the copy: apt-get install {filesystem.PACKAGE}")
        else:
            result = filesystem.check_image(self.programs.e2fsck, scratch)
            report.fsck_clean = result.clean
            report.fsck_says = result.output
            self.watcher.note(f"e2fsck -fn of the second disk's file: {'clean' if result.clean else 'NOT CLEAN'}")
            if not result.clean and self.image is not None:
                report.image_was_clean = filesystem.check_image(self.programs.e2fsck, path).clean
                if not report.image_was_clean:
                    self.watcher.note("the image was not clean to begin with; its copy is the same")

    def count(self, path: Path) -> None:
        """What a read of 4 KiB costs."""
        if self.report.image_bytes < 4096:
            self.watcher.note("no costs: the image is smaller than one block of 4 KiB")
            return
        with open_image(path, read_only=True) as source:
            self._count(source)

    def _count(self, source: Image) -> None:
        """What a random read costs, and how many there are in a second."""
        self.report.costs = count_costs(source, self.report.revision, redirect=True)
        rows = measure_rates(
            source, _RATE_SECONDS, self.report.revision, schedules=("one_thread",), styles=("batch",), numbered=False
        )
        self.report.rates = {row.depth: row.rate for row in rows}


def _digest(path: Path, length: int) -> str:
    """sha256 of a file's first bytes; what it lacks in its last sector counts as zeroes, as it does for the client."""
    digest = hashlib.sha256()
    left = length
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, length, os.POSIX_FADV_SEQUENTIAL)
        while left and (piece := file.read(min(1 << 20, left))):
            digest.update(piece)
            left -= len(piece)
    if left >= SECTOR:
        raise LocalError(f"{path} became shorter while the demo ran")
    digest.update(bytes(left))
    return digest.hexdigest()


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / (1 << 20):.0f} MiB/s"
