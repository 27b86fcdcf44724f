"""A back end that dies after any number of stores, again and again, and what its driver sees of it.

Driver and device are the real rings, over memory that both see; the record of requests in flight is the real one. The
device's stores to that memory are counted, and the one that is too many is not done: the device is dead. The next one
has the memory, the record, and a base as old as the queue. Only interpreted modules can be stopped like that, so this
runs as a program of its own: `POWERVIO_INTERPRETED=1 python -m tests.vhost_user.deaths KIND`. It tells in JSON how many
deaths were died and how many requests were done again; the first death that lost something, or let something be done
that the driver had back, ends it with an error.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from powervio import _compiled
from powervio.errors import PowervioError, RemoteError
from powervio.memory.abstract import RingMemory
from powervio.transport.vhost_user import inflight
from powervio.transport.vhost_user.inflight import InflightQueue, PackedInflight, SplitInflight
from powervio.transport.vhost_user.vring import base_of, make_ring
from powervio.virtio import device_ring, packed_device, split_device
from powervio.virtio import features as feature
from powervio.virtio.device_ring import Chain, DeviceRing
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_driver import SplitDriverRing

TOKENS = 14
STEPS = 12
NOWHERE = 0xDEAD_0000
"""Where an indirect table cannot be fetched."""


class Death(BaseException):
    """The process was killed."""


class Stores:
    """Counts the stores to shared memory of the modules that a device is made of."""

    def __init__(self) -> None:
        self.shared: set[int] = set()
        self.left = -1
        self.done = 0
        for module in (device_ring, split_device, packed_device, inflight):
            for name in dir(module):
                if name.startswith("st") and name[2:].removesuffix("_release").isdigit():
                    self._watch(module, name)

    def _watch(self, module: ModuleType, name: str) -> None:
        store: Callable[[memoryview, int, int], None] = getattr(module, name)

        def counted(base: memoryview, offset: int, value: int) -> None:
            if id(base.obj) in self.shared:
                if self.left == 0:
                    raise Death
                self.left -= 1
                self.done += 1
            store(base, offset, value)

        setattr(module, name, counted)


class Memory(RingMemory):
    """A ring's areas; the tables that its descriptors may point to."""

    def __init__(self, packed: bool, size: int) -> None:
        lengths = (16 * size, 4, 4) if packed else (16 * size, 6 + 2 * size, 6 + 8 * size)
        self.areas = [bytearray(length) for length in lengths]
        self.descriptors, self.available, self.used = (memoryview(area) for area in self.areas)
        self.tables: dict[int, memoryview] = {}

    def fetch_table(self, address: int, length: int) -> memoryview:
        if address not in self.tables:
            raise RemoteError("not mapped")
        return self.tables[address][:length]


@dataclass(frozen=True)
class Kind:
    """Of a queue."""

    packed: bool = False
    in_order: bool = False
    migrated: bool = False
    """Whether the record is new to a ring that is not."""
    batches: bool = True
    """Whether completions wait for others before they are shown."""

    @property
    def size(self) -> int:
        return 7 if self.packed else 8

    @property
    def features(self) -> int:
        bits = feature.VERSION_1 | feature.INDIRECT_DESC
        bits |= feature.RING_PACKED if self.packed else 0
        return bits | (feature.IN_ORDER if self.in_order else 0)


KINDS = {
    "split": Kind(),
    "split-migrated": Kind(migrated=True),
    "split-in-order": Kind(in_order=True),
    "packed": Kind(packed=True),
    "packed-single": Kind(packed=True, batches=False),
    "packed-migrated": Kind(packed=True, migrated=True),
    "packed-in-order": Kind(packed=True, in_order=True),
}


def _segments(token: int) -> list[tuple[int, int]]:
    """One to three, the first of them for the device to read in every second buffer with more than one."""
    return [(0x10_0000 * (token + 1) + 0x1000 * part, 16 + part) for part in range(1 + token % 3)]


def _readers(token: int) -> int:
    return token % 2 if token % 3 else 0


def _written(token: int) -> int:
    """Bytes; all that can be of every second buffer, which with IN_ORDER lets the next one share its used entry."""
    return sum(length for _, length in _segments(token)[_readers(token) :]) if token % 2 else 1 + token


@dataclass
class World:
    """One queue, its driver, and one device after the other."""

    kind: Kind
    seed: int
    stores: Stores
    deaths: list[int]
    """How many stores each device may do; the one after the last lives for ever."""
    spent: list[int] = field(default_factory=list)
    """How many each did until it was ready to serve."""
    executed: Counter[int] = field(default_factory=Counter)
    seen: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        kind, size = self.kind, self.kind.size
        self.random = random.Random(self.seed)
        self.memory = Memory(kind.packed, size)
        self.record = bytearray(inflight.packed_bytes(8) if kind.packed else inflight.split_bytes(8))
        self.stores.shared = {id(area) for area in (*self.memory.areas, self.record)}
        self.stores.left = -1
        driver = PackedDriverRing if kind.packed else SplitDriverRing
        self.driver: DriverRing = driver(size, self.memory, indirect=True, in_order=kind.in_order)
        self.next = 0
        self.bad: set[int] = set()
        self.base = 0x8000_8000 if kind.packed else 0
        if kind.migrated:
            self._without_a_record()
        start = self.stores.done
        self._next_device()
        for _ in range(STEPS):
            self._add(self.random.randrange(4))
            self._serve(self._some_work)
        turns = 0
        while self.next < TOKENS or len(self.seen) < self.next:
            turns += 1
            assert turns < 100, "something is lost"
            self._add(TOKENS)
            self._serve(self._all_work)
        assert len(self.deaths) < 2, "the first death did not come"
        self.stores.left = -1
        self.total = self.stores.done - start
        assert sorted(self.seen) == list(range(TOKENS))
        assert self.bad == {token for token in self.seen if not self.executed[token]}
        assert self.ring.in_hand == 0
        assert self._recovered() == [], "nothing is in flight"

    # -- the driver

    def _add(self, count: int) -> None:
        for _ in range(count):
            if self.next == TOKENS:
                break
            token = self.next
            segments = _segments(token)
            table: tuple[memoryview, int] | None = None
            if token % 4 == 3:
                table = (memoryview(bytearray(16 * self.kind.size)), 0xB000 + token)
                if token % 8 == 7:
                    table = (table[0], NOWHERE)
                else:
                    self.memory.tables[table[1]] = table[0]
            if self.driver.add(segments, _readers(token), token, table) < 0:
                break
            if table is not None and table[1] == NOWHERE:
                self.bad.add(token)
            self.next += 1
        self.driver.publish()

    def _reap(self) -> None:
        while (used := self.driver.reap()) is not None:
            token, written = used
            assert isinstance(token, int)
            assert token not in self.seen
            assert written == (0 if token in self.bad else _written(token)), (token, written)
            assert self.executed[token] or token in self.bad
            self.seen[token] = written

    # -- the device

    def _queue(self) -> InflightQueue:
        view = memoryview(self.record)
        return PackedInflight(view, 8, self.kind.size) if self.kind.packed else SplitInflight(view, 8)

    def _recovered(self) -> list[int]:
        queue = self._queue()
        if isinstance(queue, PackedInflight):
            return queue.recover(self.memory.descriptors, self.base >> 16)
        assert isinstance(queue, SplitInflight)
        return queue.recover(self.ring.used_index, [0] * self.kind.size)

    def _without_a_record(self) -> None:
        ring, _ = make_ring(self.kind.size, self.memory, self.kind.features, self.base, None, False)
        while ring.used_index & 0x7FFF < 5:
            self.driver.add([(0x1000, 8)], 0, "before")
            self.driver.publish()
            ring.refresh()
            chain = ring.pop()
            assert chain is not None
            ring.push(chain.head, 0)
            ring.publish()
            assert self.driver.reap() == ("before", 0)
        self.base = base_of(ring, self.kind.features)

    def _next_device(self) -> None:
        while True:
            self.held: list[Chain] = []
            before = self.stores.done
            self.stores.left = self.deaths[0] if self.deaths else -1
            try:
                self.ring, self.again = make_ring(
                    self.kind.size, self.memory, self.kind.features, self.base, self._queue(), False
                )
                self.spent.append(self.stores.done - before)
                return
            except Death:
                self.deaths.pop(0)
                self._reap()

    def _serve(self, work: Callable[[DeviceRing], None]) -> None:
        try:
            work(self.ring)
        except Death:
            self.deaths.pop(0)
            self._reap()
            self._next_device()
        self._reap()

    def _pop(self, ring: DeviceRing) -> bool:
        chain = None
        while self.again and chain is None:
            chain = ring.retake(self.again.pop(0))
        chain = ring.pop() if chain is None else chain
        if chain is None:
            return False
        address = (chain.readable or chain.writable)[0][0]
        token = address // 0x10_0000 - 1
        parts = _segments(token)
        assert (chain.readable, chain.writable) == (parts[: _readers(token)], parts[_readers(token) :])
        assert token not in self.seen, "the driver has it back"
        assert token not in self.bad
        self.executed[token] += 1
        self.held.append(chain)
        return True

    def _finish(self, ring: DeviceRing, chain: Chain) -> None:
        self.held.remove(chain)
        ring.push(chain.head, _written((chain.readable or chain.writable)[0][0] // 0x10_0000 - 1))
        if not self.kind.batches:
            ring.publish()

    def _some_work(self, ring: DeviceRing) -> None:
        ring.refresh()
        for _ in range(self.random.randrange(4)):
            self._pop(ring)
        for _ in range(self.random.randrange(4)):
            if self.held:
                self._finish(ring, self.random.choice(self.held))
            if self.random.random() < 0.3:
                self._pop(ring)  # between completions that are not shown yet
        if self.random.random() < 0.7:
            ring.publish()

    def _all_work(self, ring: DeviceRing) -> None:
        ring.refresh()
        while self._pop(ring):
            pass
        while self.held:
            self._finish(ring, self.held[0])
        ring.publish()


def died(kind: Kind, seeds: int, thorough: bool) -> dict[str, Any]:
    """Die after each store, and again: with the first seed after each store that the next device does to be ready, with
    the others after any number of them, when what the first one left is in flight anew.
    """
    stores = Stores()
    deaths = repeated = 0
    for seed in range(seeds):
        whole = World(kind, seed, stores, [])
        whole.run()
        assert set(whole.executed.values()) == {1}
        chance = random.Random(seed)
        for first in range(whole.total):
            alone = _run(kind, seed, stores, [first])
            repeated += sum(count - 1 for count in alone.executed.values())
            deaths += 1
            rest = range(alone.spent[-1]) if thorough and seed == 0 else [chance.randrange(max(alone.total - first, 1))]
            for second in rest:
                deaths += 2 - len(_run(kind, seed, stores, [first, second]).deaths)
    return {"deaths": deaths, "repeated": repeated}


def _run(kind: Kind, seed: int, stores: Stores, deaths: list[int]) -> World:
    world = World(kind, seed, stores, list(deaths))
    try:
        world.run()
    except (AssertionError, PowervioError) as error:
        error.add_note(f"deaths after {deaths} stores, seed {seed}")
        raise
    return world


if __name__ == "__main__":
    assert not _compiled.is_compiled()
    name = sys.argv[1]
    print(json.dumps(died(KINDS[name], 2, name in ("split", "packed"))))
