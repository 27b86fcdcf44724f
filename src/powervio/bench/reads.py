"""Random reads of 4 KiB by the client's block driver, through its batch interface and with `await`.

A reader keeps a depth for as long as it runs; its buffers are its own, one for each request in flight. With `numbered`
every block has to carry its own number (`write_numbered`, whose `first` it needs then), else data is not looked at.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from functools import cache
from itertools import cycle
from pathlib import Path
from struct import Struct
from typing import Protocol

from powervio.bench.rig import Disk
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.drivers.multipath_disk import MultipathDriver
from powervio.errors import LocalError
from powervio.transport.crq.client import VirtioVio
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer

BLOCK = 4096
"""Bytes of one read."""

_NUMBER = Struct("<Q")
_LAST = BLOCK - _NUMBER.size
_READ = blk.T_IN
_POSITIONS = 1 << 14
_SEED = 4096
_NO_NUMBER = 0xFFFF_FFFF_FFFF_FFFF
_NO_LIMIT = 1 << 62


def write_numbered(path: Path, size: int, first: int = 0) -> None:
    """Make an image of `size` bytes, a multiple of 4096, in which every block is filled with its number.

    The image's first block has the number `first`.
    """
    repeat = BLOCK // _NUMBER.size
    end = first + size // BLOCK
    with open(path, "wb") as file:
        for begin in range(first, end, 256):
            numbers = range(begin, min(begin + 256, end))
            file.write(b"".join([_NUMBER.pack(number) * repeat for number in numbers]))


@cache
def _positions(blocks: int) -> tuple[int, ...]:
    """Where to read in an image of so many blocks; there once for all readers of such images."""
    choose = random.Random(_SEED)
    return tuple(choose.randrange(blocks) * BLOCK for _ in range(_POSITIONS))


class _Served(Protocol):
    """One disk, at its client."""

    @property
    def driver(self) -> BlockDriver | MultipathDriver: ...

    @property
    def client(self) -> VirtioVio: ...


class _Reader:
    """What all ways of reading share."""

    def __init__(
        self, disk: _Served, depth: int, *, numbered: bool = False, keep_mapped: bool = False, first: int = 0
    ) -> None:
        assert disk.driver.capacity >= BLOCK
        self.driver = disk.driver
        self.client = disk.client
        self.depth = depth
        self.numbered = numbered
        self.first = first
        self.buffers: list[Buffer] = [disk.client.allocate(BLOCK, mapped=keep_mapped) for _ in range(depth)]
        self._positions = _positions(disk.driver.capacity // BLOCK)
        self._next = 0

    def position(self) -> int:
        """Where the next read is."""
        position = self._positions[self._next]
        self._next = (self._next + 1) % _POSITIONS
        return position

    def is_right(self, position: int, buffer: Buffer) -> bool:
        """Whether the buffer holds the block of this position; its data is made unfit for the next read."""
        number = self.first + position // BLOCK
        view = buffer.view
        if _NUMBER.unpack_from(view, 0)[0] != number or _NUMBER.unpack_from(view, _LAST)[0] != number:
            return False
        _NUMBER.pack_into(view, 0, _NO_NUMBER)
        _NUMBER.pack_into(view, _LAST, _NO_NUMBER)
        return True

    def wrong(self, position: int, buffer: Buffer) -> LocalError:
        """What is to be raised when it does not."""
        first = _NUMBER.unpack_from(buffer.view, 0)[0]
        last = _NUMBER.unpack_from(buffer.view, _LAST)[0]
        number = self.first + position // BLOCK
        return LocalError(f"block {number} was read as {first:#x} at its start and {last:#x} at its end")

    def close(self) -> None:
        """Give the buffers back."""
        for buffer in self.buffers:
            self.client.release(buffer)
        self.buffers.clear()


class _Lane:
    """One of the reads that a `BatchReader` keeps going, with a buffer of its own."""

    __slots__ = ("buffer", "number", "slices", "words")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.slices = ((buffer, 0, BLOCK),)
        self.words = buffer.view.cast("Q")
        self.words[0] = self.words[-1] = _NO_NUMBER
        self.number = 0
        """What the block that is read has to hold, in this machine's byte order."""


def _as_stored(number: int) -> int:
    """The number as a word of an image, read in this machine's byte order."""
    return number if sys.byteorder == "little" else int.from_bytes(_NUMBER.pack(number), "big")


class BatchReader(_Reader):
    """Reads by callback: what completed in one turn is submitted again in the same turn and kicked once."""

    def __init__(self, disk: Disk, depth: int, *, numbered: bool = False, keep_mapped: bool = False) -> None:
        super().__init__(disk, depth, numbered=numbered, keep_mapped=keep_mapped)
        self._rig = disk.rig
        self._lanes = [_Lane(buffer) for buffer in self.buffers]
        self._places = cycle([(place, _as_stored(self.first + place // BLOCK)) for place in self._positions])

    def run_for(self, seconds: float) -> int:
        """Read until so much time has passed; returns how many reads completed.

        Raises `LocalError` when one fails, carries wrong data, or does not come back.
        """
        return self._run(_NO_LIMIT, time.monotonic() + seconds)

    def run(self, requests: int) -> int:
        """Read so many times; returns that number. Raises as `run_for`."""
        return self._run(requests, float("inf"))

    def _run(self, left: int, end: float) -> int:
        # What is here for every read is kept short, for it is on the account of the driver.
        take, places, numbered = self.driver.submit, self._places, self.numbered
        submitted = done = 0
        failure: Exception | None = None

        def submit(lane: _Lane) -> None:
            nonlocal submitted
            submitted += 1
            position, lane.number = next(places)
            take(BlockRequest(_READ, position, BLOCK, lane.slices, completed, context=lane))

        def completed(request: BlockRequest) -> None:
            nonlocal done, failure, left
            done += 1
            lane = request.context
            if request.error is not None:
                failure, left = request.error, 0
            elif numbered:
                words, number = lane.words, lane.number
                if words[0] != number or words[-1] != number:
                    failure, left = self.wrong(request.position, lane.buffer), 0
                words[0] = words[-1] = _NO_NUMBER
            if submitted < left:
                submit(lane)

        def out_of_time() -> bool:
            nonlocal left
            if time.monotonic() >= end:
                left = 0
            return done == submitted

        for lane in self._lanes:
            if submitted < left:
                submit(lane)
        self.driver.kick()
        self._rig.wait_until(out_of_time, "a read")
        if failure is not None:
            raise failure if isinstance(failure, LocalError) else LocalError(str(failure))
        return done

    def close(self) -> None:
        """Give the buffers back. What is still in flight, after a signal, completes later and looks at its lane."""
        self._lanes.clear()
        super().close()


class LoopReader(_Reader):
    """Reads by `await` of each, in as many tasks as the depth is, in an event loop that is there."""

    async def read_until(self, end: float) -> int:
        """Read until `time.monotonic()` is `end`, once at least; returns how many reads completed.

        Raises what they raise, and `LocalError` for wrong data.
        """
        return sum(await asyncio.gather(*(self._task(buffer, end) for buffer in self.buffers)))

    async def _task(self, buffer: Buffer, end: float) -> int:
        driver = self.driver
        done = 0
        while not done or time.monotonic() < end:
            position = self.position()
            await driver.read_buffer(position, buffer, 0, BLOCK)
            if self.numbered and not self.is_right(position, buffer):
                raise self.wrong(position, buffer)
            done += 1
        return done


class AwaitReader(LoopReader):
    """The same in the event loop of a rig."""

    def __init__(self, disk: Disk, depth: int, *, numbered: bool = False, keep_mapped: bool = False) -> None:
        super().__init__(disk, depth, numbered=numbered, keep_mapped=keep_mapped)
        self._rig = disk.rig

    def run_for(self, seconds: float) -> int:
        """See `BatchReader.run_for`."""
        return self._rig.run(self.read_until(time.monotonic() + seconds))
