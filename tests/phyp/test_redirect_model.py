"""The isolation model with redirected DMA: operations in flight while everything around them changes.

To the calls of `test_isolation_model` come those of redirected DMA, a stand-in for an engine whose operations begin,
move bytes and end when the model says so, and partitions that die with operations in flight and come back. Whatever is
called: an operation moves bytes only in pages that it pinned when it began, those pages keep their entries and are
never given to anybody else, and the memory of the dead lasts exactly as long as an operation is at work on it.

Hypothesis looks for a short run that fails. The walk takes the same steps by the ten thousand, at random from a seed
that it prints: together they are the 200,000 steps that the whole has to stand.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from powervio.errors import LocalError
from powervio.papr.engine import DmaFault
from powervio.phyp.dma_table import DmaOperation
from powervio.phyp.partition import Partition
from powervio.phyp.physical import PhysicalAdapter, buffers_of

from .model import LONG_BUSY, PARAMETER, REMOTE_PARM, ModelAdapter, ModelEnd, ModelOperation, ModelPartition
from .test_isolation_model import PAGE, PAGES, PAIRS, Isolation, addresses, lengths, partitions

pytestmark = [pytest.mark.dual, pytest.mark.timeout(900)]

WALK_STEPS = 200_000
WALK_LENGTH = 2_500
"""Steps after which the walk starts with new partitions."""
ENGINE_PAGES = 6
IN_FLIGHT = 6

pairs = st.integers(0, len(PAIRS) - 1)
places = st.builds(lambda place, offset: place * PAGE + offset, st.integers(0, 6), st.sampled_from((0, 0, 8, 4095)))
counts = st.sampled_from((0, 1, 1, 2, 3, 6, 7))
segments = st.lists(st.tuples(places, lengths), min_size=1, max_size=3)
whole = st.integers(0, 2**16)


class Flight:
    """One operation of the stand-in, on both sides."""

    def __init__(self, adapter: PhysicalAdapter, real: DmaOperation, model: ModelOperation, *, to_memory: bool) -> None:
        self.adapter = adapter
        self.real = real
        self.model = model
        self.to_memory = to_memory
        self.entries = [(copy.client, copy.entry, copy.client.tces.get(copy.entry)) for copy in model.copies]

    def entries_unchanged(self) -> bool:
        return all(end.tces.get(entry) == tce for end, entry, tce in self.entries if end.owner.ends)


class Redirected(Isolation):
    """The same calls on both, and operations."""

    def __init__(self) -> None:
        self.engines: list[PhysicalAdapter] = []
        self.flights: list[Flight] = []
        self.ghosts: list[tuple[Partition, ModelPartition]] = []
        """Partitions that are dead, with memory that an operation is at work on."""
        super().__init__()
        self.engines = [self.make_engine(index) for index in range(3)]

    def make_engine(self, index: int) -> PhysicalAdapter:
        engine = self.hypervisor.create_physical_adapter(self.real[index], ENGINE_PAGES * PAGE)
        self.model[index].adapter = ModelAdapter(self.model[index], engine.liobn, ENGINE_PAGES)
        return engine

    def liobn(self, index: int, name: int) -> int:
        if name == 5 and self.engines:
            return self.engines[index].liobn
        return super().liobn(index, name)

    def teardown(self) -> None:
        while self.flights:
            self.end(0)
        assert not self.ghosts
        super().teardown()

    @invariant()
    def the_dead_keep_their_memory_while_it_is_used(self) -> None:
        for real, model in self.ghosts:
            assert bytes(real.area.view) == model.memory

    @invariant()
    def pinned_pages_keep_their_entries(self) -> None:
        for flight in self.flights:
            assert flight.entries_unchanged()

    # the calls

    @rule(pair=pairs, name=st.sampled_from((5, 5, 5, 5, 0, 1)), r_ioba=addresses, ioba=places, count=counts)
    def put_rtce(self, pair: int, name: int, r_ioba: int, ioba: int, count: int) -> None:
        end = self.ends[2 * pair]
        index = PAIRS[pair][0]
        liobn = self.liobn(index, name)
        assert end.remote_liobn is not None
        result = self.real[index].port.put_rtce(end.remote_liobn, r_ioba, liobn, ioba, count)
        model = self.model[index]
        if model.physical(liobn) is None or not self.in_windows(end, r_ioba, ioba, count):
            assert result == (PARAMETER, 0)
            return
        r_iobas = [r_ioba + page * PAGE for page in range(count)]
        assert result == model.put_rtce(end.remote_liobn, r_iobas, liobn, ioba, 1)

    def in_windows(self, end: ModelEnd, r_ioba: int, ioba: int, count: int) -> bool:
        return (
            r_ioba < end.remote_size
            and r_ioba // PAGE + count <= end.remote_size // PAGE
            and ioba < ENGINE_PAGES * PAGE
            and ioba // PAGE + count <= ENGINE_PAGES
        )

    @rule(
        pair=pairs,
        r_iobas=st.lists(addresses, max_size=7),
        ioba=places,
        page=st.integers(0, PAGES - 1),
    )
    def put_rtce_indirect(self, pair: int, r_iobas: list[int], ioba: int, page: int) -> None:
        end = self.ends[2 * pair]
        index = PAIRS[pair][0]
        count, liobn = len(r_iobas), self.engines[index].liobn
        assert end.remote_liobn is not None
        self.own_write(index, page * PAGE, b"".join(address.to_bytes(8, "big") for address in r_iobas))
        result = self.real[index].port.put_rtce_indirect(page * PAGE, end.remote_liobn, liobn, ioba, count)
        beyond = [number for number, r_ioba in enumerate(r_iobas) if r_ioba >= end.remote_size]
        if ioba >= ENGINE_PAGES * PAGE or ioba // PAGE + count > ENGINE_PAGES:
            assert result == (PARAMETER, 0)
        elif beyond:
            assert result == (REMOTE_PARM, beyond[0])
        else:
            assert result == self.model[index].put_rtce(end.remote_liobn, r_iobas, liobn, ioba, 1)

    @rule(pair=pairs, r_ioba=addresses, ioba=places, count=counts, tce=st.integers(0, 4 * PAGE))
    def remove_rtce(self, pair: int, r_ioba: int, ioba: int, count: int, tce: int) -> None:
        end = self.ends[2 * pair]
        index = PAIRS[pair][0]
        liobn = self.engines[index].liobn
        assert end.remote_liobn is not None
        code = self.real[index].port.remove_rtce(end.remote_liobn, r_ioba, liobn, ioba, count, tce)
        if not self.in_windows(end, r_ioba, ioba, count):
            assert code == PARAMETER
            return
        assert code == 0
        self.model[index].remove_rtce(liobn, ioba, count, tce)

    @rule(
        index=partitions,
        name=st.integers(0, 6),
        reset=st.sampled_from((0, 0, 0, 1, 2)),
        wanted=st.sampled_from((0, 1, 1, 1, 4)),
    )
    def liobn_attributes(self, index: int, name: int, reset: int, wanted: int) -> None:
        liobn = self.liobn(index, name)
        result = self.real[index].port.liobn_attributes(liobn, reset, wanted)
        assert result == self.model[index].liobn_attributes(liobn, reset, wanted)

    # the engine

    @rule(index=partitions, parts=segments, to_memory=st.booleans())
    def begin(self, index: int, parts: list[tuple[int, int]], to_memory: bool) -> None:
        if len(self.flights) >= IN_FLIGHT:
            return
        adapter = self.model[index].adapter
        assert adapter is not None
        expected = adapter.begin(parts, 2 if to_memory else 1)
        try:
            operation = self.engines[index].begin(parts, to_memory=to_memory)
        except DmaFault:
            assert expected is None
        else:
            assert expected is not None
            self.flights.append(Flight(self.engines[index], operation, expected, to_memory=to_memory))

    @rule(pair=pairs, page=st.integers(0, 9), place=st.integers(0, 5), count=st.integers(1, 3), to_memory=st.booleans())
    def redirect_and_begin(self, pair: int, page: int, place: int, count: int, to_memory: bool) -> None:
        """The good case on purpose."""
        self.put_rtce(pair, 5, page * PAGE, place * PAGE, count)
        self.begin(PAIRS[pair][0], [(place * PAGE + 100, count * PAGE - 200)], to_memory)

    @rule(which=whole, byte=st.integers(0, 255))
    def move(self, which: int, byte: int) -> None:
        """The engine is at work: it fills the memory of an operation, or takes it."""
        if not self.flights:
            return
        flight = self.flights[which % len(self.flights)]
        buffers = buffers_of(flight.real)
        if flight.to_memory:
            data = bytes((byte + position) & 0xFF for position in range(64)) * (flight.real.length // 64 + 1)
            flight.model.fill(data)
            for buffer in buffers:
                buffer[:] = data[: len(buffer)]
                data = data[len(buffer) :]
        else:
            assert b"".join(map(bytes, buffers)) == flight.model.data

    @rule(which=whole)
    def end(self, which: int) -> None:
        if not self.flights:
            return
        flight = self.flights.pop(which % len(self.flights))
        flight.adapter.end(flight.real, moved=True)
        flight.model.end()
        for ghost in list(self.ghosts):
            real, model = ghost
            if not model.pins:
                with pytest.raises(ValueError, match="released"):
                    bytes(real.area.view)
                self.ghosts.remove(ghost)
        for real, model in zip(self.real, self.model, strict=True):
            assert real.pins == model.pins

    # the partitions

    @rule(index=partitions)
    def reboot(self, index: int) -> None:
        """Memory under an operation is not cleared."""
        try:
            self.hypervisor.reboot(self.real[index])
        except LocalError:
            assert self.model[index].pins
        else:
            assert not self.model[index].pins
        self.model[index].reboot()
        if not self.model[index].pins:
            self.load(index)

    @rule(index=partitions)
    def terminate(self, index: int) -> None:
        """A partition dies, whatever is in flight, and comes back as another with new adapters."""
        real, model = self.real[index], self.model[index]
        self.hypervisor.terminate(real)
        model.terminate()
        if model.pins:
            self.ghosts.append((real, model))
        for pair, ends in enumerate(PAIRS):
            if index in ends:
                self.part(pair)
        self.real[index] = self.hypervisor.create_partition(real.name, PAGES * PAGE)
        self.model[index] = ModelPartition(PAGES)
        self.load(index)
        self.engines[index] = self.make_engine(index)
        for pair, ends in enumerate(PAIRS):
            if index in ends:
                self.ends[2 * pair : 2 * pair + 2] = self.make_pair(pair)
        for pair, ends in enumerate(PAIRS):
            if index in ends:
                self.connect(pair, [(pair + page) % PAGES for page in range(10)])

    def part(self, pair: int) -> None:
        """Take the survivor's adapter away. Its pages that the dead server's engine is at work on are its own only
        after that."""
        for end, index in zip(self.ends[2 * pair : 2 * pair + 2], PAIRS[pair], strict=True):
            survivor = self.real[index]
            adapter = survivor.adapters.get(end.unit_address)
            if not self.model[index].ends or adapter is None:
                continue
            if end.remote_liobn is None and any(copy.pins for copy in end.copies):
                if end.queue is not None and end.bit_bucket:
                    assert survivor.port.free_crq(end.unit_address) == LONG_BUSY
                with pytest.raises(LocalError, match="still at work"):
                    self.hypervisor.remove_pair(adapter)  # type: ignore[arg-type]
                for flight in [*self.flights]:
                    if any(copy.client is end for copy in flight.model.copies):
                        self.end(self.flights.index(flight))
            self.hypervisor.remove_pair(adapter)  # type: ignore[arg-type]
            end.free()
            self.model[index].ends.remove(end)


Redirected.TestCase.settings = settings(
    max_examples=max(150, settings.default.max_examples if settings.default else 0), stateful_step_count=50
)
test_isolation_with_redirected_dma = Redirected.TestCase


def address(choose: random.Random) -> int:
    return choose.randrange(11) * PAGE + choose.choice((0, 0, 1, 8, 4088, 4089, 4095))


def place(choose: random.Random) -> int:
    return choose.randrange(7) * PAGE + choose.choice((0, 0, 8, 4095))


def length(choose: random.Random) -> int:
    return choose.choice((0, 1, 8, 8, 16, 100, 4095, 4096, 4097, 2 * PAGE))


def entry(choose: random.Random) -> int:
    return choose.randrange(PAGES + 1) * PAGE | choose.choice((0, 1, 2, 3, 3, 3))


ARGUMENTS: dict[str, tuple[Callable[[random.Random], Any], ...]] = {
    "put_tce": (lambda r: r.randrange(3), lambda r: r.randrange(7), address, entry),
    "map_own": (lambda r: r.randrange(6), lambda r: r.randrange(10), entry),
    "stuff_tce": (lambda r: r.randrange(3), lambda r: r.randrange(7), address, entry, lambda r: r.randrange(12)),
    "put_tce_indirect": (
        lambda r: r.randrange(3),
        lambda r: r.randrange(7),
        address,
        lambda r: r.randrange(PAGES),
        lambda r: [entry(r) for _ in range(r.randrange(10))],
    ),
    "get_tce": (lambda r: r.randrange(3), lambda r: r.randrange(7), address),
    "connect": (lambda r: r.randrange(3), lambda r: [r.randrange(PAGES) for _ in range(10)]),
    "free_crq": (lambda r: r.randrange(6), lambda r: 0),
    "send_crq": (
        lambda r: r.randrange(6),
        lambda r: 0,
        lambda r: r.choice((0x7F, 0x80, 0xC0, 0xFF)),
        lambda r: r.randrange(1 << 56),
        lambda r: r.randrange(1 << 64),
    ),
    "free_slots": (lambda r: r.randrange(6), lambda r: r.choice((1, 10, 256))),
    "enable_crq": (lambda r: r.randrange(6), lambda r: 0),
    "copy_rdma": (
        lambda r: r.randrange(3),
        length,
        lambda r: r.randrange(7),
        address,
        lambda r: r.randrange(7),
        address,
    ),
    "copy_own": (lambda r: r.randrange(3), length, address, place, lambda r: r.random() < 0.5),
    "write_and_read_back": (lambda r: r.randrange(3), place, lambda r: r.randbytes(r.randrange(1, 49))),
    "work": (
        lambda r: r.randrange(3),
        lambda r: r.randrange(PAGES),
        lambda r: r.randrange(PAGE - 8),
        lambda r: r.randbytes(8),
    ),
    "suspend": (lambda r: r.randrange(3),),
    "put_rtce": (
        lambda r: r.randrange(3),
        lambda r: r.choice((5, 5, 5, 5, 0, 1)),
        address,
        place,
        lambda r: r.choice((0, 1, 1, 2, 3, 6, 7)),
    ),
    "put_rtce_indirect": (
        lambda r: r.randrange(3),
        lambda r: [address(r) for _ in range(r.randrange(7))],
        place,
        lambda r: r.randrange(PAGES),
    ),
    "remove_rtce": (
        lambda r: r.randrange(3),
        address,
        place,
        lambda r: r.choice((0, 1, 1, 2, 3, 6, 7)),
        lambda r: r.randrange(4 * PAGE),
    ),
    "liobn_attributes": (
        lambda r: r.randrange(3),
        lambda r: r.randrange(7),
        lambda r: r.choice((0, 0, 0, 1, 2)),
        lambda r: r.choice((0, 1, 1, 1, 4)),
    ),
    "begin": (
        lambda r: r.randrange(3),
        lambda r: [(place(r), length(r)) for _ in range(r.randrange(1, 4))],
        lambda r: r.random() < 0.5,
    ),
    "redirect_and_begin": (
        lambda r: r.randrange(3),
        lambda r: r.randrange(10),
        lambda r: r.randrange(6),
        lambda r: r.randrange(1, 4),
        lambda r: r.random() < 0.5,
    ),
    "move": (lambda r: r.randrange(1 << 16), lambda r: r.randrange(256)),
    "end": (lambda r: r.randrange(1 << 16),),
    "reboot": (lambda r: r.randrange(3),),
    "terminate": (lambda r: r.randrange(3),),
}
"""What the walk calls each rule with."""
OFTEN = {"redirect_and_begin": 4, "move": 3, "end": 2, "put_rtce": 2, "map_own": 3, "connect": 2}
"""How much more often than the others."""


def test_walk_of_200_000_steps() -> None:
    names = [name for name in ARGUMENTS for _ in range(OFTEN.get(name, 1))]
    seed = random.SystemRandom().randrange(1 << 32)
    flown = deaths = 0
    for start in range(0, WALK_STEPS, WALK_LENGTH):
        choose = random.Random(seed + start)
        machine = Redirected()
        machine.start([0, 1, 2, 3, 4, 5, 6, 7])
        call = ""
        try:
            for _ in range(WALK_LENGTH):
                name = choose.choice(names)
                arguments = [make(choose) for make in ARGUMENTS[name]]
                call = f"{name}{tuple(arguments)}"
                getattr(machine, name)(*arguments)
                machine.nothing_else_changed()
                machine.the_dead_keep_their_memory_while_it_is_used()
                machine.pinned_pages_keep_their_entries()
                flown += name == "move" and bool(machine.flights)
                deaths += bool(machine.ghosts)
            machine.teardown()
        except Exception as error:
            raise AssertionError(f"seed {seed}, part from {start}: {call}") from error
    # the walk has to lead somewhere
    assert flown > WALK_STEPS // 50
    assert deaths > WALK_STEPS // 200
