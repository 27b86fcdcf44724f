"""The record of requests in flight of a packed ring: its bytes, recovery, and records that cannot be true."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.virtio.model import MappedPackedRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory import hw
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user import inflight_area
from powervio.transport.vhost_user.inflight import PackedInflight, packed_bytes
from powervio.transport.vhost_user.vring import make_ring
from powervio.virtio import features as feature
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing

pytestmark = pytest.mark.dual

SIZE = 4
NEXT, WRITE, INDIRECT, AVAILABLE, USED = 1, 2, 4, 0x80, 0x8000
FIRST = 0x8000
HEAD = struct.Struct("=QHHHHHHBB10x")
ENTRY = struct.Struct("=BxHHHQHHIQ")


def descriptor(address: int, length: int, number: int, flags: int) -> bytes:
    return struct.pack("<QIHH", address, length, number, flags)


RING = bytearray(b"".join(descriptor(0x1000 * slot, 16 + slot, 40 + slot, AVAILABLE) for slot in range(SIZE)))


@pytest.fixture
def view() -> Iterator[memoryview]:
    fd, size = inflight_area.create(2, SIZE, packed=True)
    area = MappedArea(fd, size)
    yield area.view[packed_bytes(SIZE) :]
    area.close()


def head(view: memoryview) -> tuple[int, ...]:
    return HEAD.unpack_from(view)


def entry(view: memoryview, number: int) -> tuple[int, ...]:
    return ENTRY.unpack_from(view, 32 + 32 * number)


class RemoteRing(MappedPackedRing):
    remote = True


def started(view: memoryview, position: int = FIRST) -> PackedInflight:
    queue = PackedInflight(view, SIZE, SIZE)
    queue.start(position)
    return queue


def finish(queue: PackedInflight, used_index: int, *heads: int) -> None:
    for number in heads:
        queue.note_complete(number)
    queue.note_publishing(used_index)
    queue.note_published(used_index)


def test_new_record_is_zero_and_is_begun_where_the_ring_stands(view: memoryview) -> None:
    assert packed_bytes(SIZE) == 192
    assert packed_bytes(128) == 4160
    assert not any(view[:192])
    queue = PackedInflight(view, SIZE, SIZE)
    before = queue.begun
    queue.start(0x8002)
    assert (before, queue.begun) == (False, True)
    assert head(view) == (0, 1, SIZE, 0, 0, 2, 2, 1, 1)
    assert [entry(view, number)[:2] for number in range(SIZE)] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert (queue.used_index, queue.last_available) == (0x8002, 0x8002)
    queue.start(3)  # wrap counter 0
    assert head(view) == (0, 1, SIZE, 0, 0, 3, 3, 0, 0)


def test_chain_is_noted_with_its_descriptors_and_comes_back_free(view: memoryview) -> None:
    queue = started(view)
    ring = bytearray(RING)
    ring[3 * 16 : 4 * 16] = descriptor(0x3000, 19, 43, AVAILABLE | NEXT)
    ring[:16] = descriptor(0xAAAA_BBBB_CCCC_DDDD, 0xEEEE_FFFF, 0x1234, WRITE)
    queue.note_chain(2, ring, 1, 1)
    queue.note_chain(0, ring, 3, 2)  # round the end of the ring
    assert head(view) == (0, 1, SIZE, 3, 3, 0, 0, 1, 1)
    assert entry(view, 0) == (1, 1, 0, 1, 0, 41, AVAILABLE, 17, 0x1000)
    assert entry(view, 1) == (1, 2, 2, 2, 1, 43, AVAILABLE | NEXT, 19, 0x3000)
    assert entry(view, 2) == (0, 3, 0, 0, 0, 0x1234, WRITE, 0xEEEE_FFFF, 0xAAAA_BBBB_CCCC_DDDD)
    queue.note_complete(0)
    assert head(view) == (0, 1, SIZE, 3, 3, 0, 0, 1, 1), "nothing is about to be shown"
    queue.note_publishing(0x8002)
    assert head(view) == (0, 1, SIZE, 1, 3, 2, 0, 1, 1)
    assert entry(view, 2)[1] == 3
    assert entry(view, 1)[0] == 1
    queue.note_published(0x8002)
    assert head(view) == (0, 1, SIZE, 1, 1, 2, 2, 1, 1)
    assert entry(view, 1)[0] == 0
    finish(queue, 0x8003, 2)
    assert head(view)[3:5] == (0, 0)
    assert [entry(view, number)[1] for number in (0, 1, 2, 3)] == [1, 2, 3, 4], "0, then 1 2, then 3"


def test_chain_between_completions_that_are_not_shown_yet_takes_what_is_free(view: memoryview) -> None:
    queue = started(view)
    for number in range(2):
        queue.note_chain(number, RING, number, 1)
    queue.note_complete(0)
    queue.note_chain(2, RING, 2, 1)
    queue.note_complete(2)
    assert PackedInflight(view, SIZE, SIZE).recover(memoryview(bytearray(RING)), FIRST) == [0, 1, 2]
    queue.note_publishing(0x8002)
    queue.note_published(0x8002)
    queue.note_chain(0, RING, 3, 1)
    assert entry(view, 2)[0] == 1
    assert entry(view, 1)[0] == 1
    assert entry(view, 0)[0] == 0


def test_successor_takes_what_was_in_flight_in_order_and_goes_on_behind_it(view: memoryview) -> None:
    queue = started(view)
    for number in (3, 1, 0):
        queue.note_chain(number, RING, number, 1)
    finish(queue, 0x8001, 3)
    queue.note_chain(2, RING, 2, 1)
    ring = bytearray(RING)
    again = PackedInflight(view, SIZE, SIZE)
    assert again.recover(memoryview(ring), FIRST) == [1, 2, 0]
    assert (again.used_index, again.last_available) == (0x8001, 0)  # once round: wrap counter 0
    assert [again.note_recall(number, note) for number, note in enumerate((1, 2, 0))] == [
        RING[16:32], RING[:16], RING[32:48],
    ]  # fmt: skip
    finish(again, 0x8003, 0, 2)
    assert entry(view, 2)[0] == 1
    again.note_chain(0, RING, 0, 1)
    assert PackedInflight(view, SIZE, SIZE).recover(memoryview(ring), FIRST) == [2, 0]


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("wrap", [0, 1])
@pytest.mark.parametrize("batch", [1, 2, SIZE])
def test_batch_of_the_death_is_in_flight_unless_the_ring_shows_it(
    view: memoryview, shown: bool, wrap: int, batch: int
) -> None:
    start, behind = wrap << 15 | 2, (wrap << 15 | 2 + batch) if batch < 2 else ((1 - wrap) << 15 | batch - 2)
    queue = started(view, start)
    flags = AVAILABLE if wrap else USED
    ring = bytearray(b"".join(descriptor(0, 0, 0, flags if slot >= 2 else flags ^ 0x8080) for slot in range(SIZE)))
    for number in range(batch):
        queue.note_chain(number, ring, (2 + number) % SIZE, 1)
        queue.note_complete(number)
    queue.note_publishing(behind)
    if shown:
        ring[16 * 2 :] = descriptor(0, 0, 0, AVAILABLE | USED if wrap else 0) + ring[16 * 3 :]
    again = PackedInflight(view, SIZE, SIZE)
    assert again.recover(memoryview(ring), start) == ([] if shown else list(range(batch)))
    assert again.used_index == (behind if shown else start)
    assert again.last_available == behind
    assert head(view)[3:5] == ((batch - 1,) * 2 if shown else (batch,) * 2)
    assert sum(entry(view, number)[0] for number in range(SIZE)) == (0 if shown else batch)


def test_new_record_at_a_ring_that_came_by_migration_loses_nothing(view: memoryview) -> None:
    """All of a new record is 0, and the ring stands at slot 2: then the first request is taken, and the device dies."""
    memory = MappedPackedRing(SIZE)
    memory.descriptors[:] = RING
    for slot in range(2):
        hw.st16(memory.descriptors, 16 * slot + 14, AVAILABLE | USED)
    bits = feature.VERSION_1 | feature.RING_PACKED
    ring, again = make_ring(SIZE, memory, bits, 0x8002_8002, PackedInflight(view, SIZE, SIZE), False)
    assert again == []
    ring.refresh()
    assert ring.pop() is not None
    ring, again = make_ring(SIZE, memory, bits, 0x8002_8002, PackedInflight(view, SIZE, SIZE), False)
    assert again == [0]
    chain = ring.retake(0)
    assert chain is not None
    assert chain.readable == [(0x2000, 18)]
    ring.push(chain.head, 0)
    ring.publish()
    assert (ring.used_index, ring.last_available & 0xFFFF) == (0x8003, 0x8003)
    assert hw.ld16(memory.descriptors, 16 * 2 + 12) == 42


@pytest.mark.parametrize("wrap", [0, 1])
def test_record_of_another_back_end_that_began_at_slot_0_loses_nothing(view: memoryview, wrap: int) -> None:
    """Old and new used index are 0, where the ring does not stand; the first chain after a migration is in flight."""
    queue = started(view)
    ring = bytearray(RING)
    ring[:32] = descriptor(0, 0, 0, AVAILABLE | USED) + descriptor(0, 0, 0, AVAILABLE | USED)
    queue.note_chain(0, ring, 2, 1)
    hw.st8(view, 20, wrap)
    hw.st8(view, 21, wrap)
    again = PackedInflight(view, SIZE, SIZE)
    assert again.recover(memoryview(ring), 0x8002) == [0]
    assert (again.used_index, again.last_available) == (0x8002, 0x8003)
    assert head(view)[5:] == (2, 2, 1, 1)
    ring[32:48] = descriptor(0, 0, 0, 0)
    with pytest.raises(RemoteError, match="the ring is not at slot 2, and not at 1 either") as error:
        PackedInflight(view, SIZE, SIZE).recover(memoryview(ring), 0x8001)
    assert error.value.verdict is Verdict.NEEDS_RESET


def test_what_the_record_of_another_back_end_lost_is_free_again(view: memoryview) -> None:
    queue = started(view)
    queue.note_chain(0, RING, 0, 1)
    queue.note_chain(1, RING, 1, 1)
    hw.st8(view, 32, 0)  # the first is not in flight any more, and nobody put it among the free ones
    again = PackedInflight(view, SIZE, SIZE)
    ring = bytearray(RING)
    assert again.recover(memoryview(ring), FIRST) == [1]
    for number, slot in enumerate((2, 3, 0)):
        again.note_chain(number, RING, slot, 1)
    assert [entry(view, number)[0] for number in range(SIZE)] == [1, 1, 1, 1]
    with pytest.raises(LocalError, match="head 3 "):
        again.note_chain(3, RING, 1, 1)


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (14, 1, "entry 1, which is not its own"),  # a chain runs into the free ones
        (32 + 64 + 2, 2, "entry 2 is free twice"),
        (32 + 6, 0, "the chain of entry 0 is empty"),
        (32 + 6, 5, "which is not its own"),
        (32 + 2, 0xFFFF, "entry 65535, which is not its own"),
        (32 + 2, 0, "entry 0, which is not its own"),
        (16, SIZE, "slot 4 of a packed ring of 4"),
        (18, 0xFFFF, "slot 65535 of a packed ring of 4"),
        (20, 2, "wrap counters"),
        (21, 3, "wrap counters"),
    ],
)
def test_record_that_cannot_be_true_is_refused_and_left_alone(
    view: memoryview, offset: int, value: int, match: str
) -> None:
    queue = started(view)
    ring = bytearray(RING)
    ring[14:16] = (AVAILABLE | NEXT).to_bytes(2, "little")
    queue.note_chain(0, ring, 0, 2)
    if offset in (20, 21):
        hw.st8(view, offset, value)
    else:
        hw.st16(view, offset, value)
    before = bytes(view)
    with pytest.raises(RemoteError, match=match) as error:
        PackedInflight(view, SIZE, SIZE).recover(memoryview(ring), FIRST)
    assert error.value.verdict is Verdict.NEEDS_RESET
    assert bytes(view) == before


def test_record_of_another_kind_or_length_is_refused(view: memoryview) -> None:
    with pytest.raises(RemoteError, match="of 191 bytes for a queue of 4"):
        PackedInflight(view[:191], SIZE, SIZE)
    with pytest.raises(RemoteError, match="a ring of 5 entries, and a record for 4"):
        PackedInflight(view, SIZE, 5)
    queue = PackedInflight(view, SIZE, 3)
    with pytest.raises(RemoteError, match="slot 3 of a packed ring of 3"):
        queue.start(0x8003)
    hw.st16(view, 8, 2)
    with pytest.raises(RemoteError, match="version 2 for 0 descriptors; expected version 1 for 4"):
        PackedInflight(view, SIZE, SIZE)


def test_number_that_no_chain_has_is_refused(view: memoryview) -> None:
    queue = started(view)
    for number, slot, count in ((4, 0, 1), (0, 4, 1), (0, 0, 0), (0, 0, 5)):
        with pytest.raises(LocalError, match=f"head {number} "):
            queue.note_chain(number, RING, slot, count)
    for number in (0, 4):
        with pytest.raises(LocalError, match=f"head {number} "):
            queue.note_complete(number)
    for note in (0, 4):
        with pytest.raises(LocalError, match="head 1 "):
            queue.note_recall(1, note)
    queue.note_chain(1, RING, 0, 1)
    queue.note_complete(1)
    with pytest.raises(LocalError, match="head 1 "):
        queue.note_complete(1)


@given(st.data())
def test_any_bytes_are_refused_or_give_chains_within_bounds(data: st.DataObject) -> None:
    """The record and the ring are the front end's: a device that goes on with them reads and writes within bounds."""
    view = memoryview(bytearray(packed_bytes(SIZE)))
    queue = started(view)
    memory = MappedPackedRing(SIZE)
    driver = PackedDriverRing(SIZE, memory)
    for number in range(data.draw(st.integers(0, SIZE))):
        driver.add([(0x1000 * number, 16)], 1, number)
    driver.publish()
    for number in range(data.draw(st.integers(0, SIZE))):
        queue.note_chain(number, bytearray(memory.descriptors), number, 1)
    for _ in range(data.draw(st.integers(1, 4))):
        offset: int = data.draw(st.integers(12, 32 + 32 * SIZE - 1))
        view[offset] = data.draw(st.integers(0, 8) | st.integers(0, 255))
    if data.draw(st.booleans()):
        memory.descriptors[data.draw(st.integers(0, 16 * SIZE - 1))] = data.draw(st.integers(0, 255))
    bits = feature.VERSION_1 | feature.RING_PACKED
    try:
        ring, again = make_ring(SIZE, memory, bits, 0x8000_8000, PackedInflight(view, SIZE, SIZE), False)
        assert len(again) <= SIZE
        assert len(set(again)) == len(again)
        chains = [ring.retake(note) for note in again]
        ring.refresh()
        while (chain := ring.pop()) is not None:
            chains.append(chain)
        assert len(chains) <= SIZE
        for chain in chains:
            assert chain is not None
            ring.push(chain.head, 0)
        ring.publish()
    except RemoteError as error:
        verdict = error.verdict
    else:
        verdict = Verdict.NEEDS_RESET
    assert verdict is Verdict.NEEDS_RESET


# -- the ring's part


def test_used_descriptors_that_were_not_shown_are_taken_back() -> None:
    """A dead device wrote a batch but the flags of its first descriptor; the driver must not find the rest later."""
    memory = MappedPackedRing(SIZE)
    driver = PackedDriverRing(SIZE, memory)
    for number in range(SIZE):
        driver.add([(0x1000 * number, 16)], 1, number)
    driver.publish()
    dead = PackedDeviceRing(SIZE, memory)
    dead.refresh()
    chains = [dead.pop() for _ in range(3)]
    for chain in chains:
        assert chain is not None
        dead.push(chain.head, 0)
    assert [hw.ld16(memory.descriptors, 16 * slot + 14) for slot in range(SIZE)] == [
        AVAILABLE, AVAILABLE | USED, AVAILABLE | USED, AVAILABLE,
    ]  # fmt: skip
    PackedDeviceRing(SIZE, memory, last_available=0x8003, used_index=FIRST)
    assert [hw.ld16(memory.descriptors, 16 * slot + 14) for slot in range(SIZE)] == [AVAILABLE] * SIZE


def test_ring_takes_again_only_what_a_record_has(view: memoryview) -> None:
    memory = MappedPackedRing(SIZE)
    ring = PackedDeviceRing(SIZE, memory, last_available=0x8001, used_index=FIRST)
    with pytest.raises(LocalError, match="chain 0 cannot be taken again: there is no record"):
        ring.retake(0)
    queue = started(view)
    queue.note_chain(0, RING, 0, 1)
    queue = PackedInflight(view, SIZE, SIZE)
    memory.descriptors[:] = RING
    assert queue.recover(memory.descriptors, FIRST) == [0]
    ring.keep_record(queue)
    with pytest.raises(LocalError, match="head 3 "):
        ring.retake(1)
    hw.st16(view, 32 + 18, NEXT)  # the front end changes what it checked: a chain without an end
    with pytest.raises(RemoteError, match="a chain of 1 descriptors that does not end"):
        ring.retake(0)
    assert ring.broken


def test_record_is_for_rings_in_mapped_memory_and_before_they_are_used(view: memoryview) -> None:
    queue = started(view)
    with pytest.raises(LocalError, match="a ring of mapped memory"):
        PackedDeviceRing(SIZE, RemoteRing(SIZE)).keep_record(queue)
    memory = MappedPackedRing(SIZE)
    memory.descriptors[:] = RING
    ring = PackedDeviceRing(SIZE, memory)
    ring.refresh()
    assert ring.pop() is not None
    with pytest.raises(LocalError, match="of which nothing is taken"):
        ring.keep_record(queue)


def test_positions_further_apart_than_the_ring_is_long_are_refused() -> None:
    memory = MappedPackedRing(SIZE)
    with pytest.raises(LocalError, match="5 descriptors taken and not used, in a queue of 4"):
        PackedDeviceRing(SIZE, memory, last_available=1, used_index=FIRST)
    with pytest.raises(RemoteError, match="base 0x80000001 of a packed ring of 4") as error:
        make_ring(SIZE, memory, feature.VERSION_1 | feature.RING_PACKED, 0x8000_0001, None, False)
    assert error.value.verdict is Verdict.NEEDS_RESET


def test_forgotten_record_begins_anew_where_the_front_end_says(view: memoryview) -> None:
    queue = started(view)
    queue.note_chain(0, RING, 0, 1)
    memory = MappedPackedRing(SIZE)
    bits = feature.VERSION_1 | feature.RING_PACKED
    ring, again = make_ring(SIZE, memory, bits, 0x8003_8003, PackedInflight(view, SIZE, SIZE), True)
    assert again == []
    assert ring.used_index == 0x8003
    assert head(view)[5:] == (3, 3, 1, 1)
    assert entry(view, 0)[0] == 0
