"""Random reads of 4 KiB by the client's block driver, through its batch interface and with `await`.

A reader keeps a depth for as long as it runs; its buffers are its own, one for each request in flight. With `numbered`
every block has to carry its own number (`write_numbered`, whose `first` it needs then), else data is not looked at.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from functools import cache
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
_POSITIONS = 1 << 14
_SEED = 4096
_NO_NUMBER = 0xFFFF_FFFF_FFFF_FFFF


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


class BatchReader(_Reader):
    """Reads by callback: what completed in one turn is submitted again in the same turn and kicked once."""

    def __init__(self, disk: Disk, depth: int, *, numbered: bool = False, keep_mapped: bool = False) -> None:
        super().__init__(disk, depth, numbered=numbered, keep_mapped=keep_mapped)
        self._rig = disk.rig

    def run_for(self, seconds: float) -> int:
        """Read until so much time has passed; returns how many reads completed.

        Raises `LocalError` when one fails, carries wrong data, or does not come back.
        """
        return self._run(math.inf, time.monotonic() + seconds)

    def run(self, requests: int) -> int:
        """Read so many times; returns that number. Raises as `run_for`."""
        return self._run(requests, math.inf)

    def _run(self, left: float, end: float) -> int:
        driver = self.driver
        done = in_flight = 0
        failure: Exception | None = None

        def submit(buffer: Buffer) -> None:
            nonlocal in_flight, left
            in_flight += 1
            left -= 1
            slices = ((buffer, 0, BLOCK),)
            driver.submit(BlockRequest(blk.T_IN, self.position(), BLOCK, slices, completed, context=buffer))

        def completed(request: BlockRequest) -> None:
            nonlocal done, failure, in_flight, left
            done += 1
            in_flight -= 1
            buffer = request.slices[0][0]
            if request.error is not None:
                failure, left = request.error, 0
            elif self.numbered and not self.is_right(request.position, buffer):
                failure, left = self.wrong(request.position, buffer), 0
            if left > 0:
                submit(buffer)

        def out_of_time() -> bool:
            nonlocal left
            if time.monotonic() >= end:
                left = 0
            return in_flight == 0

        for buffer in self.buffers:
            if left > 0:
                submit(buffer)
        driver.kick()
        self._rig.wait_until(out_of_time, "a read")
        if failure is not None:
            raise failure if isinstance(failure, LocalError) else LocalError(str(failure))
        return done


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
