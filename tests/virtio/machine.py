"""A state machine that drives both sides of a ring and compares with the plain model; not a test by itself.

The driver goes on while remote memory is copied (`meanwhile`), with copies made at the worst moment.
"""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.virtio.model import Buffer, MappedRing, Model, Segments, merged

from powervio.memory.abstract import RingMemory
from powervio.virtio.device_ring import DeviceRing
from powervio.virtio.driver_ring import DriverRing

shapes = st.tuples(
    st.lists(st.tuples(st.integers(0, 15), st.integers(1, 3)), min_size=1, max_size=5), st.integers(0, 5), st.booleans()
)


def segments_of(shape: list[tuple[int, int]]) -> Segments:
    """Few addresses and short lengths, so that some segments continue each other."""
    return [(0x1000 + place, length) for place, length in shape]


class Queue(RuleBasedStateMachine):
    """Every buffer comes once, in order, whole; lengths come back; nobody sleeps over work."""

    remote = False
    sizes: tuple[int, ...]
    memory: MappedRing
    ring_memory: RingMemory
    driver: DriverRing
    device: DeviceRing

    def make(self, size: int, features: dict[str, bool], big_endian: bool) -> None:
        """Make `memory`, `ring_memory` and both rings."""
        raise NotImplementedError

    @initialize(
        size=st.integers(0, 63),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        in_order=st.booleans(),
        big_endian=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def start(self, size: int, event_idx: bool, indirect: bool, in_order: bool, big_endian: bool, seed: int) -> None:
        size = self.sizes[size % len(self.sizes)]
        self.random = random.Random(seed)
        self.ending = False
        self.make(size, {"event_idx": event_idx, "indirect": indirect, "in_order": in_order}, big_endian)
        self.indirect = indirect
        self.model = Model(size, in_order)
        self.heads: dict[int, int] = {}
        self.number = 0
        self.kicks: list[int] = []
        self.device_sleeps = True
        self.interrupt = False
        self.driver_sleeps = True

    def meanwhile(self) -> None:
        """What the driver does while the hypervisor copies."""
        choice = 1.0 if self.ending else self.random.random()
        if choice < 0.3:
            self.do_reap()
        if choice < 0.5:
            count = self.random.randrange(1, 4)
            shape = [(self.random.randrange(16), self.random.randrange(1, 4)) for _ in range(count)]
            self.do_add(shape, self.random.randrange(count + 1), self.random.random() < 0.5)
        if 0.2 < choice < 0.6:
            self.do_publish()

    def do_add(self, shape: list[tuple[int, int]], readable: int, table: bool) -> None:
        segments = segments_of(shape)
        readable = min(readable, len(segments))
        if len(segments) > self.model.size:
            return
        memory = (memoryview(bytearray(16 * len(segments) + 3))[3:], 0x10000 * (self.number + 1))
        given = memory if table and self.indirect else None
        descriptors = 1 if given else len(segments)
        head = self.driver.add(segments, readable, self.number, given)
        if self.model.free < descriptors:
            assert head == -1
            return
        assert head >= 0
        assert head not in self.heads
        self.heads[head] = self.number
        if given:
            self.memory.tables[given[1]] = given[0]
        self.model.added.append(
            Buffer(self.number, merged(segments[:readable]), merged(segments[readable:]), descriptors)
        )
        self.number += 1

    def do_publish(self) -> None:
        some = bool(self.model.added)
        kick = self.driver.publish()
        self.model.available.extend(self.model.added)
        self.model.added.clear()
        assert some or not kick
        if kick:
            self.kicks.append(self.driver.published_index)
            self.device_sleeps = False

    def do_reap(self) -> None:
        got = self.driver.reap()
        if not self.model.used:
            # A remote store makes elements visible before the call returns to the model.
            assert got is None
            return
        if got is None:
            assert self.remote
            return
        buffer = self.model.used.popleft()
        assert got == (buffer.token, buffer.written)
        self.heads = {head: token for head, token in self.heads.items() if token != buffer.token}

    @rule(shape=shapes)
    def add(self, shape: tuple[list[tuple[int, int]], int, bool]) -> None:
        self.do_add(*shape)

    @rule()
    def publish(self) -> None:
        self.do_publish()

    @rule(hint=st.booleans())
    def refresh(self, hint: bool) -> None:
        """On a kick, with its index, or for no reason."""
        known = self.kicks.pop(0) if hint and self.kicks else None
        count = self.device.refresh(known)
        assert count == self.device.pending <= len(self.model.available)
        if not self.remote:
            assert count == len(self.model.available)

    @rule()
    def pop(self) -> None:
        pending = self.device.pending
        chain = self.device.pop()
        if chain is None:
            assert pending == 0
            return
        assert self.device.pending == pending - 1
        buffer = self.model.available.popleft()
        assert (chain.readable, chain.writable) == (buffer.readable, buffer.writable)
        self.model.at_device[chain.head] = buffer

    @rule(choice=st.randoms(use_true_random=False))
    def push(self, choice: random.Random) -> None:
        heads = sorted(self.model.at_device.keys() - self.model.finished)
        if heads:
            head = choice.choice(heads)
            room = self.model.at_device[head].room
            written = choice.choice([room, choice.randint(0, room)])
            self.device.push(head, written)
            self.model.push(head, written)

    @rule()
    def publish_used(self) -> None:
        some = bool(self.model.pushed)
        notify = self.device.publish()
        self.model.used.extend(self.model.pushed)
        self.model.pushed.clear()
        assert some or not notify
        if notify:
            self.driver_sleeps = False

    @rule()
    def reap(self) -> None:
        self.do_reap()

    @rule()
    def device_goes_to_sleep(self) -> None:
        self.device_sleeps = False
        more = self.device.enable_notifications()
        if not more:
            self.device_sleeps = not self.kicks

    @rule()
    def device_polls(self) -> None:
        self.device_sleeps = False
        self.device.disable_notifications()

    @rule()
    def driver_goes_to_sleep(self) -> None:
        self.driver_sleeps = not self.driver.enable_interrupts()

    @rule()
    def driver_polls(self) -> None:
        self.driver_sleeps = False
        self.driver.disable_interrupts()

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def books_agree(self) -> None:
        assert self.driver.free_descriptors == self.model.free
        assert self.device.in_hand == len(self.model.at_device) + len(self.model.pushed)
        assert self.driver.in_flight == sorted(buffer.token for buffer in self.model.in_flight)

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def nobody_sleeps_over_work(self) -> None:
        if self.device_sleeps:  # it may, over buffers that it knows of and keeps for later
            assert len(self.model.available) == self.device.pending
        if self.driver_sleeps:
            assert not self.model.used

    def teardown(self) -> None:
        """Everything that was added comes back."""
        if not hasattr(self, "model"):
            return
        self.ending = True
        self.do_publish()
        for _ in range(3):  # what was known, what the next copy shows, and what waited for room
            self.device.refresh()
            while self.device.pending:
                self.pop()
            while self.model.at_device:
                self.push(self.random)
            self.publish_used()
            while self.model.used:
                self.do_reap()
            self.do_publish()
            if not self.model.in_flight:
                break
        assert self.driver.in_flight == []
        assert self.driver.free_descriptors == self.model.size
