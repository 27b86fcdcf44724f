"""Requests that are served together are answered as they are one by one, whatever a client asks for, in whatever
framing: used lengths, data, status bytes, the image and the counters are compared with a `DirectLink`."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias

import pytest

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.storage.image import Image, open_image
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import RawDriver
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer, BufferSlice, DriverQueue, DriverTransport

DISK = 2 << 20
AREA = 2 << 20
PAGE = 4096
NOWHERE = ((1 << 41), (1 << 64) - (1 << 22))
"""Device addresses that are nobody's."""
UNTOUCHED = 0xEE

Part: TypeAlias = tuple[int, int]
"""A descriptor: place in the area, or -1 and -2 for `NOWHERE`; length."""
SEEDS = range(4)


class Ask:
    """One request: its descriptors, and what is in the area before."""

    def __init__(self) -> None:
        self.readable: list[Part] = []
        self.writable: list[Part] = []
        self.before: list[tuple[int, bytes]] = []
        self.writes: tuple[int, int] | None = None
        """Where on the disk, in bytes."""


class Asks:
    """Random requests of a batch. They share pages and no byte, and no sector, so their order does not matter."""

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._at = 0
        self._sectors: set[int] = set()
        self.asks = [self._ask() for _ in range(choice.choice([1, 2, 5, 12, 30]))]

    def _put(self, parts: list[Part], ask: Ask, data: bytes, align: int = 1) -> None:
        """Some place for bytes, cut into descriptors."""
        choice = self._choice
        if choice.random() < 0.3:
            self._at += choice.choice([1, 16, 100, 512, PAGE])
        self._at += -self._at % align
        at, left = self._at, len(data)
        ask.before.append((at, data))
        self._at += left
        while left:
            size = left
            if choice.random() < 0.25:
                size = min(left, choice.choice([1, 7, 15, 16, 17, 511, 512, PAGE]))
            parts.append((at, size))
            at, left = at + size, left - size

    def _sector(self, count: int) -> int:
        for _ in range(50):
            sector = self._choice.randrange(DISK // 512)
            taken = range(sector, sector + count)
            if self._sectors.isdisjoint(taken):
                self._sectors.update(taken)
                return sector
        return DISK // 512  # there is none: behind the end

    def _ask(self) -> Ask:
        choice, ask = self._choice, Ask()
        kinds = [blk.T_IN, blk.T_OUT, blk.T_FLUSH, blk.T_GET_ID, blk.T_DISCARD, blk.T_WRITE_ZEROES, 99]
        kind = choice.choices(kinds, [30, 30, 4, 3, 3, 4, 2])[0]
        length = choice.choice([0, 512, 1024, PAGE, PAGE, PAGE, 6144, 2 * PAGE, 3 * PAGE, 16 * PAGE])
        if choice.random() < 0.05 and self._at < AREA // 4:
            length = 75 * PAGE
        if choice.random() < 0.04:
            length += choice.choice([1, 17, 511])
        sector = self._sector(-(-length // 512))
        named = sector if choice.random() > 0.03 else choice.choice([DISK // 512, 1 << 40, (1 << 64) - 1])
        header = blk.REQUEST_HEADER["little"].pack(kind, 0, named)
        if choice.random() < 0.04:
            header = (header + bytes(4))[: choice.choice([1, 15, 17, 20])]
        self._put(ask.readable, ask, header, choice.choice([1, 16]))
        align = choice.choice([1, 4, 512, PAGE])
        if kind == blk.T_OUT:
            self._put(ask.readable, ask, choice.randbytes(length), align)
            ask.writes = sector * 512, length
        elif kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
            self._put(ask.readable, ask, blk.SEGMENT["little"].pack(sector, length // 512, 0))
        if kind == blk.T_IN:
            self._put(ask.writable, ask, bytes([UNTOUCHED]) * length, align)
        elif kind == blk.T_GET_ID or choice.random() < 0.05:
            self._put(ask.writable, ask, bytes([UNTOUCHED]) * choice.choice([5, 20, 30]))
        if choice.random() > 0.03:
            self._put(ask.writable, ask, bytes([UNTOUCHED]))
        if choice.random() < 0.08:
            parts = choice.choice([ask.readable, ask.writable or ask.readable])
            number = choice.randrange(len(parts))
            parts[number] = -choice.choice([1, 2]), parts[number][1]
        return ask


class Asker(RawDriver):
    """Sends them as they are, and notes the used lengths."""

    device_id: ClassVar[int] = blk.DEVICE_ID

    def start(self, transport: DriverTransport) -> None:
        super().start(transport)
        assert self._memory is not None
        self.area = self._memory
        self.used: dict[int, int] = {}

    def completed(self, queue: DriverQueue) -> None:
        while (found := queue.reap()) is not None:
            number, written = found
            assert isinstance(number, int)
            assert number not in self.used
            self.used[number] = written

    def _slices(self, parts: Sequence[Part]) -> list[BufferSlice]:
        return [
            (self.area, at, size) if at >= 0 else (Buffer(memoryview(bytearray(size)), 0, NOWHERE[at]), 0, size)
            for at, size in parts
        ]

    def ask(self, asks: Sequence[Ask], link: DirectLink | PartitionPair) -> None:
        """Send all of them, as many together as the queue takes."""
        self.used.clear()
        for one in asks:
            for at, data in one.before:
                self.area.view[at : at + len(data)] = data
        assert self.transport is not None
        queue = self.transport.queues[0]
        for number, one in enumerate(asks):
            while not queue.add(self._slices(one.readable), self._slices(one.writable), number):
                self._run(queue, link)
        self._run(queue, link)
        assert sorted(self.used) == list(range(len(asks)))

    @staticmethod
    def _run(queue: DriverQueue, link: DirectLink | PartitionPair) -> None:
        queue.kick()
        if isinstance(link, DirectLink):
            link.run()
        else:
            link.settle()

    def seen(self, asks: Sequence[Ask]) -> bytes:
        """The area, but for what a read that failed left behind: nobody says what that is."""
        area = bytearray(self.area.view[:AREA])
        for number, one in enumerate(asks):
            if self.used[number] != sum(size for _, size in one.writable):
                for index, (at, size) in enumerate(one.writable):
                    size -= index == len(one.writable) - 1  # the status
                    if at >= 0:
                        area[at : at + size] = bytes(size)
        return bytes(area)


def settle_failed_writes(asks: Sequence[Ask], asker: Asker, path: Path, other: Path) -> None:
    """How much of a write that failed is on the disk nobody says: the same from here on."""
    with path.open("rb") as source, other.open("r+b") as target:
        for one in asks:
            status_at = one.before[-1][0]
            if one.writes is not None and asker.area.view[status_at] != blk.S_OK:
                position, length = one.writes
                source.seek(position)
                target.seek(position)
                target.write(source.read(min(length, max(0, DISK - position))))


class Worn(Image):
    """An image with two places that cannot be read or written."""

    def _check(self, position: int, length: int) -> None:
        if any(position <= bad < position + length for bad in (700 << 10, 1500 << 10)):
            raise OSError(errno.EIO, "worn out")

    def read_into(self, position: int, buffer: memoryview) -> None:
        self._check(position, len(buffer))
        super().read_into(position, buffer)

    def write_from(self, position: int, buffer: memoryview) -> None:
        self._check(position, len(buffer))
        super().write_from(position, buffer)

    def read_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        self._check(position, sum(map(len, buffers)))
        super().read_vector(position, buffers)

    def write_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        self._check(position, sum(map(len, buffers)))
        super().write_vector(position, buffers)


@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])
@pytest.mark.parametrize("writeback", [True, False], ids=["write back", "write through"])
@pytest.mark.parametrize("redirect", [False, True], ids=["copied", "redirected"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_together_is_as_one_by_one(
    tmp_path: Path, packed: bool, redirect: bool, writeback: bool, in_order: bool
) -> None:
    redirected = 0
    for seed in SEEDS:
        choice = random.Random(f"{seed} {packed} {redirect} {writeback} {in_order}")
        contents = choice.randbytes(DISK)
        paths = [tmp_path / "one.img", tmp_path / "all.img"]
        for path in paths:
            path.write_bytes(contents)
        with open_image(paths[0]) as image, open_image(paths[1]) as other:
            if choice.random() < 0.3:
                image.__class__ = other.__class__ = Worn
            options = BlockOptions(writeback=writeback, serial="abc", max_request=choice.choice([64 * PAGE, 64 << 20]))
            device, batched = BlockDevice(image, options), BlockDevice(other, options)
            link = DirectLink(device, Asker(), packed=packed, in_order=in_order)
            link.connect()
            pair = PartitionPair(
                batched,
                Asker(),
                packed=packed,
                in_order=in_order,
                indirect=choice.choice(["auto", "never", "always"]),
                event_idx=choice.random() < 0.5,
                redirect=redirect,
                redirect_min=choice.choice([PAGE, 64 * PAGE, 1 << 40]),
            ).start()
            one, all_of_it = link.driver, pair.driver
            assert isinstance(one, Asker)
            assert isinstance(all_of_it, Asker)
            for _ in range(5):
                asks = Asks(choice).asks
                one.ask(asks, link)
                all_of_it.ask(asks, pair)
                assert all_of_it.used == one.used
                assert all_of_it.seen(asks) == one.seen(asks)
                all_of_it.area.view[:AREA] = one.area.view[:AREA]
                settle_failed_writes(asks, one, *paths)
            assert paths[0].read_bytes() == paths[1].read_bytes()
            errors, others = device.counters.errors, batched.counters.errors
            assert sum(errors.values()) == sum(others.values())  # of two faults another may be found first
            errors.clear()
            others.clear()
            assert batched.counters == device.counters
            assert (pair.client.sessions, pair.server.state) == (1, "running")
            table = pair.client_adapter.table
            assert table is not None
            assert table.copies.tracked == 0
            redirected += pair.client_adapter.ledger.snapshot()["redirected_bytes"]
            link.close()
            pair.close()
    assert (redirected > 0) == redirect
