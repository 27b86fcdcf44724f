"""Random reads of 4 KiB by the client's block driver, through its batch interface and with `await`.

A reader keeps a depth for as long as it runs; its buffers are its own, one for each request in flight. With `numbered`
every block has to carry its own number (`write_numbered`), else data is not looked at.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from pathlib import Path
from struct import Struct

from powervio.bench.rig import Disk
from powervio.drivers.block import BlockRequest
from powervio.errors import LocalError
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer

BLOCK = 4096
"""Bytes of one read."""

_NUMBER = Struct("<Q")
_LAST = BLOCK - _NUMBER.size
_POSITIONS = 1 << 14
_SEED = 4096
_NO_NUMBER = 0xFFFF_FFFF_FFFF_FFFF


def write_numbered(path: Path, size: int) -> None:
    """Make an image of `size` bytes, a multiple of 4096, in which every block is filled with its number."""
    repeat = BLOCK // _NUMBER.size
    with open(path, "wb") as file:
        for first in range(0, size // BLOCK, 256):
            last = min(first + 256, size // BLOCK)
            file.write(b"".join([_NUMBER.pack(number) * repeat for number in range(first, last)]))


class _Reader:
    """What both ways of reading share."""

    def __init__(self, disk: Disk, depth: int, *, numbered: bool = False, keep_mapped: bool = False) -> None:
        assert disk.driver.capacity >= BLOCK
        self.disk = disk
        self.depth = depth
        self.numbered = numbered
        self.buffers: list[Buffer] = [disk.client.allocate(BLOCK, mapped=keep_mapped) for _ in range(depth)]
        blocks = disk.driver.capacity // BLOCK
        choose = random.Random(_SEED)
        self._positions = [choose.randrange(blocks) * BLOCK for _ in range(_POSITIONS)]
        self._next = 0

    def position(self) -> int:
        """Where the next read is."""
        position = self._positions[self._next]
        self._next = (self._next + 1) % _POSITIONS
        return position

    def is_right(self, position: int, buffer: Buffer) -> bool:
        """Whether the buffer holds the block of this position; its data is made unfit for the next read."""
        number = position // BLOCK
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
        return LocalError(f"block {position // BLOCK} was read as {first:#x} at its start and {last:#x} at its end")

    def run_for(self, seconds: float) -> int:
        """Read until so much time has passed; returns how many reads completed.

        Raises `LocalError` when one fails, carries wrong data, or does not come back.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give the buffers back."""
        for buffer in self.buffers:
            self.disk.client.release(buffer)
        self.buffers.clear()


class BatchReader(_Reader):
    """Reads by callback: what completed in one turn is submitted again in the same turn and kicked once."""

    def run_for(self, seconds: float) -> int:
        """See `_Reader`."""
        return self._run(math.inf, time.monotonic() + seconds)

    def run(self, requests: int) -> int:
        """Read so many times; returns that number. Raises as `run_for`."""
        return self._run(requests, math.inf)

    def _run(self, left: float, end: float) -> int:
        disk = self.disk
        driver = disk.driver
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
        disk.rig.wait_until(out_of_time, "a read")
        if failure is not None:
            raise failure if isinstance(failure, LocalError) else LocalError(str(failure))
        return done


class AwaitReader(_Reader):
    """Reads by `await` of each, in as many tasks as the depth is."""

    def run_for(self, seconds: float) -> int:
        """See `_Reader`."""
        return self.disk.rig.run(self._main(time.monotonic() + seconds))

    async def _main(self, end: float) -> int:
        return sum(await asyncio.gather(*(self._task(buffer, end) for buffer in self.buffers)))

    async def _task(self, buffer: Buffer, end: float) -> int:
        driver = self.disk.driver
        done = 0
        while time.monotonic() < end:
            position = self.position()
            await driver.read_buffer(position, buffer, 0, BLOCK)
            if self.numbered and not self.is_right(position, buffer):
                raise self.wrong(position, buffer)
            done += 1
        return done
