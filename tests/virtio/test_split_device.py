"""The device side of the split ring: rules that a driver can break, notification, remote copies."""

from __future__ import annotations

import random
import struct

import pytest
from tests.virtio.model import INDIRECT, NEXT, WRITE, MappedRing, RawRing, ShadowRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio.split_device import SplitDeviceRing

pytestmark = pytest.mark.dual

SIZE = 8


def rejected(ring: SplitDeviceRing, words: str) -> None:
    """The next pop breaks the ring, and so does every later one."""
    assert ring.refresh() > 0
    with pytest.raises(RemoteError, match=words) as caught:
        ring.pop()
    assert caught.value.verdict is Verdict.NEEDS_RESET
    assert ring.broken
    with pytest.raises(RemoteError, match="broken until it is reset"):
        ring.pop()
    with pytest.raises(RemoteError, match="broken until it is reset"):
        ring.refresh()


def test_pop_readable_and_writable_gives_both_lists_in_order() -> None:
    memory = RawRing(SIZE)
    memory.describe(3, 0x1000, 16, NEXT, 5)
    memory.describe(5, 0x8000, 4096, NEXT | WRITE, 0)
    memory.describe(0, 0x2000, 1, WRITE)
    memory.offer(3)
    ring = SplitDeviceRing(SIZE, memory)
    assert ring.refresh() == 1
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, chain.readable, chain.writable) == (3, [(0x1000, 16)], [(0x8000, 4096), (0x2000, 1)])
    assert ring.pop() is None
    assert ring.last_available == 1


def test_pop_adjacent_segments_are_one() -> None:
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 0x10, NEXT, 1)
    memory.describe(1, 0x1010, 0x20, NEXT, 2)
    memory.describe(2, 0x1030, 0x10, NEXT | WRITE, 3)
    memory.describe(3, 0x1040, 0x10, WRITE)
    memory.offer(0)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert chain.readable == [(0x1000, 0x30)]
    assert chain.writable == [(0x1030, 0x20)]


def test_pop_run_to_end_of_address_space_is_not_merged_over_it() -> None:
    memory = RawRing(SIZE)
    memory.describe(0, 2**64 - 16, 16, NEXT, 1)
    memory.describe(1, 0, 16, NEXT, 2)
    memory.describe(2, 2**64 - 8, 16, NEXT, 3)
    memory.describe(3, 8, 16)
    memory.offer(0)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert chain.readable == [(2**64 - 16, 16), (0, 16), (2**64 - 8, 16), (8, 16)]


def test_pop_empty_descriptor_is_left_out() -> None:
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 0, NEXT, 1)
    memory.describe(1, 0x2000, 4, NEXT, 2)
    memory.describe(2, 0x9000, 0, NEXT, 3)
    memory.describe(3, 0x2004, 4)
    memory.offer(0)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == ([(0x2000, 8)], [])


def test_pop_readable_after_writable_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.4.2
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 4, NEXT | WRITE, 1)
    memory.describe(1, 0x2000, 4)
    memory.offer(0)
    rejected(SplitDeviceRing(SIZE, memory), "readable descriptor after a writable one")


@pytest.mark.parametrize("length", [0, 16])
def test_pop_loop_breaks_the_ring(length: int) -> None:
    # virtio 1.4, 2.7.5.2
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, length, NEXT, 1)
    memory.describe(1, 0x2000, length, NEXT, 0)
    memory.offer(0)
    rejected(SplitDeviceRing(SIZE, memory), "loop or longer")


def test_pop_chain_of_queue_size_is_good() -> None:
    memory = RawRing(SIZE)
    for index in range(SIZE):
        memory.describe(index, 0x1000 * (index + 1), 16, NEXT if index + 1 < SIZE else 0, index + 1)
    memory.offer(0)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert len(chain.readable) == SIZE


def test_pop_head_out_of_range_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.6
    memory = RawRing(SIZE)
    memory.offer(SIZE)
    rejected(SplitDeviceRing(SIZE, memory), "head 8")


def test_pop_next_out_of_range_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.5
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 4, NEXT, SIZE)
    memory.offer(0)
    rejected(SplitDeviceRing(SIZE, memory), "descriptor 8 of a table of 8")


def test_pop_two_to_the_32_bytes_is_good_and_one_more_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.5.2
    memory = RawRing(SIZE)
    memory.describe(0, 0, 0xFFFFFFFF, NEXT, 1)
    memory.describe(1, 1 << 40, 1)
    memory.describe(2, 0, 0xFFFFFFFF, NEXT, 3)
    memory.describe(3, 1 << 40, 2)
    memory.offer(0, 2)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    assert ring.pop() is not None
    rejected(ring, "more than 2\\^32 bytes")


def test_pop_same_head_twice_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.13: the driver gets its descriptors back by the used ring only
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 4)
    memory.offer(0, 0)
    ring = SplitDeviceRing(SIZE, memory)
    ring.refresh()
    assert ring.pop() is not None
    rejected(ring, "head 0 made available again")


def test_refresh_more_heads_than_queue_size_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.13.3.1 (rust-vmm #196)
    memory = RawRing(SIZE)
    memory.available_index = SIZE + 1
    ring = SplitDeviceRing(SIZE, memory)
    with pytest.raises(RemoteError, match=r"avail\.idx is 9"):
        ring.refresh()
    assert ring.broken


def test_refresh_index_going_back_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.6.1
    memory = RawRing(SIZE)
    memory.describe(0, 0x1000, 4)
    memory.describe(1, 0x1000, 4)
    memory.offer(0, 1)
    ring = SplitDeviceRing(SIZE, memory)
    assert ring.refresh() == 2
    memory.available_index = 1
    with pytest.raises(RemoteError, match="never goes back") as caught:
        ring.refresh()
    assert caught.value.verdict is Verdict.NEEDS_RESET


# Indirect tables


def indirect(memory: RawRing, length: int, flags: int = INDIRECT, address: int = 0x7001) -> SplitDeviceRing:
    memory.describe(0, address, length, flags)
    memory.offer(0)
    return SplitDeviceRing(SIZE, memory, indirect=True)


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE])
def test_pop_indirect_table_gives_its_segments_and_ignores_write_on_the_pointer(flags: int) -> None:
    # virtio 1.4, 2.7.5.3.2; the address is odd: 2.7.5.3 has no rule of alignment
    memory = RawRing(SIZE)
    length = memory.table(0x7001, (0x1000, 16, NEXT, 2), (0, 0, 0, 0), (0x2000, 32, WRITE, 0))
    ring = indirect(memory, length, flags)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, chain.readable, chain.writable) == (0, [(0x1000, 16)], [(0x2000, 32)])


def test_pop_direct_descriptors_before_one_indirect_are_one_buffer() -> None:
    # virtio 1.4, 2.7.5.3.2
    memory = RawRing(SIZE)
    length = memory.table(0x7000, (0x1010, 16, NEXT, 1), (0x2000, 32, WRITE, 0))
    memory.describe(4, 0x1000, 16, NEXT, 1)
    memory.describe(1, 0x7000, length, INDIRECT)
    memory.offer(4)
    ring = SplitDeviceRing(SIZE, memory, indirect=True)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, chain.readable, chain.writable) == (4, [(0x1000, 32)], [(0x2000, 32)])


def test_pop_indirect_table_not_negotiated_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.5.3.1
    memory = RawRing(SIZE)
    memory.describe(0, 0x7000, memory.table(0x7000, (0x1000, 16, 0, 0)), INDIRECT)
    memory.offer(0)
    rejected(SplitDeviceRing(SIZE, memory), "without the feature")


def test_pop_nested_table_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.5.3.1
    memory = RawRing(SIZE)
    rejected(indirect(memory, memory.table(0x7001, (0x7001, 16, INDIRECT, 0))), "in an indirect table")


def test_pop_indirect_with_next_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.5.3.1
    memory = RawRing(SIZE)
    length = memory.table(0x7001, (0x1000, 16, 0, 0))
    rejected(indirect(memory, length, INDIRECT | NEXT), "INDIRECT and has NEXT")


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFFFFFF])
def test_pop_table_length_not_a_multiple_of_16_breaks_the_ring(length: int) -> None:
    # virtio 1.4, 2.7.5.3
    rejected(indirect(RawRing(SIZE), length), f"table of {length} bytes")


def test_pop_loop_in_a_table_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    rejected(indirect(memory, memory.table(0x7001, (0x1000, 16, NEXT, 1), (0x2000, 16, NEXT, 0))), "loop or longer")


def test_pop_index_outside_the_table_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    rejected(indirect(memory, memory.table(0x7001, (0x1000, 16, NEXT, 1))), "descriptor 1 of a table of 1")


@pytest.mark.parametrize(("direct", "good"), [(0, True), (1, False)])
def test_pop_direct_and_indirect_parts_together_are_limited_to_the_queue_size(direct: int, good: bool) -> None:
    # virtio 1.4, 2.7.5.3.1
    memory = RawRing(SIZE)
    entries = [(0x1000 * (n + 2), 16, NEXT if n + 1 < SIZE else 0, n + 1) for n in range(SIZE)]
    memory.describe(0, 0x1000, 16, NEXT, 1)
    memory.describe(1, 0x7001, memory.table(0x7001, *entries), INDIRECT)
    memory.offer(0 if direct else 1)
    ring = SplitDeviceRing(SIZE, memory, indirect=True)
    if not good:
        rejected(ring, "longer than the queue")
        return
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert len(chain.readable) == SIZE


def test_pop_table_larger_than_the_queue_is_used_as_far_as_a_chain_can_go() -> None:
    memory = RawRing(SIZE)
    entries = [(0x1000, 16, 0, 0)] * (SIZE + 1)
    ring = indirect(memory, memory.table(0x7001, *entries))
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert chain.readable == [(0x1000, 16)]


def test_pop_table_that_cannot_be_fetched_goes_back_with_length_0_and_the_next_is_given() -> None:
    memory = RawRing(SIZE)
    memory.describe(0, 0xBAD000, 16, INDIRECT)
    memory.describe(1, 0x1000, 4)
    memory.offer(0, 1)
    ring = SplitDeviceRing(SIZE, memory, indirect=True)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert chain.head == 1
    assert ring.rejected == 1
    assert ring.publish()
    assert memory.used_index == 1
    assert struct.unpack_from("<II", memory.used, 4) == (0, 0)
    assert not ring.broken


def test_pop_table_fetch_that_ends_the_session_breaks_the_ring() -> None:
    class Gone(RawRing):
        def fetch_table(self, address: int, length: int) -> memoryview:
            raise RemoteError("the window is gone", Verdict.CLOSE)

    ring = indirect(Gone(SIZE), 16)
    ring.refresh()
    with pytest.raises(RemoteError, match="window is gone") as caught:
        ring.pop()
    assert caught.value.verdict is Verdict.CLOSE
    assert ring.broken


def test_pop_table_fetch_that_is_short_is_a_local_error() -> None:
    class Short(RawRing):
        def fetch_table(self, address: int, length: int) -> memoryview:
            return memoryview(bytearray(length - 1))

    ring = indirect(Short(SIZE), 16)
    ring.refresh()
    with pytest.raises(LocalError, match="15 bytes of 16"):
        ring.pop()


# Giving back, and notification


def popped(memory: RawRing, count: int, *, event_idx: bool = False) -> SplitDeviceRing:
    for index in range(count):
        memory.describe(index, 0x1000, 4, WRITE)
    memory.offer(*range(count))
    ring = SplitDeviceRing(SIZE, memory, event_idx=event_idx)
    ring.refresh()
    for _ in range(count):
        assert ring.pop() is not None
    return ring


def test_push_is_visible_after_publish_only() -> None:
    # virtio 1.4, 2.7.8.2
    memory = RawRing(SIZE)
    ring = popped(memory, 2)
    ring.push(1, 4)
    ring.push(0, 3)
    assert memory.used_index == 0
    assert ring.used_index == 2
    assert ring.publish()
    assert memory.used_index == 2
    assert struct.unpack_from("<IIII", memory.used, 4) == (1, 4, 0, 3)


@pytest.mark.parametrize("head", [-1, 0, 2, SIZE])
def test_push_head_that_is_not_the_devices_is_a_local_error(head: int) -> None:
    ring = popped(RawRing(SIZE), 2)
    ring.push(0, 0)
    with pytest.raises(LocalError, match="not the device's"):
        ring.push(head, 0)


@pytest.mark.parametrize("written", [-1, 2**32])
def test_push_length_of_more_than_32_bits_is_a_local_error(written: int) -> None:
    ring = popped(RawRing(SIZE), 1)
    with pytest.raises(LocalError, match="32 bits"):
        ring.push(0, written)


def test_publish_nothing_pushed_does_not_notify() -> None:
    assert not popped(RawRing(SIZE), 1).publish()


@pytest.mark.parametrize(("flags", "notify"), [(0, True), (1, False)])
def test_publish_without_event_idx_follows_the_flag(flags: int, notify: bool) -> None:
    # virtio 1.4, 2.7.7.2; used_event would say the contrary
    memory = RawRing(SIZE)
    ring = popped(memory, 1)
    memory.available[0] = flags
    memory.available[-2:] = b"\x00\x00" if not notify else b"\x30\x00"
    ring.push(0, 0)
    assert ring.publish() is notify


@pytest.mark.parametrize(("event", "notify"), [(65535, False), (0, True), (1, True), (2, True), (3, False)])
def test_publish_with_event_idx_notifies_when_the_index_is_passed(event: int, notify: bool) -> None:
    # virtio 1.4, 2.7.7.2; the lower bit of flags is ignored
    memory = RawRing(SIZE)
    ring = popped(memory, 3, event_idx=True)
    memory.available[0] = 1
    memory.available[-2:] = struct.pack("<H", event)
    for head in range(3):
        ring.push(head, 0)
    assert ring.publish() is notify


def test_notifications_without_event_idx_are_switched_by_the_flag() -> None:
    # virtio 1.4, 2.7.10.2
    memory = RawRing(SIZE)
    ring = SplitDeviceRing(SIZE, memory)
    ring.disable_notifications()
    assert bytes(memory.used[:2]) == b"\x01\x00"
    assert not ring.enable_notifications()
    assert bytes(memory.used[:2]) == b"\x00\x00"
    memory.describe(0, 0x1000, 4)
    memory.offer(0)
    assert ring.enable_notifications()


def test_notifications_with_event_idx_are_armed_at_the_next_index_and_flags_stay_0() -> None:
    # virtio 1.4, 2.7.10.2
    memory = RawRing(SIZE)
    ring = popped(memory, 3, event_idx=True)
    ring.disable_notifications()
    assert not ring.enable_notifications()
    assert bytes(memory.used[-2:]) == b"\x03\x00"
    assert bytes(memory.used[:2]) == b"\x00\x00"


def test_enable_notifications_index_ran_away_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = SplitDeviceRing(SIZE, memory)
    memory.available_index = 5000
    with pytest.raises(RemoteError, match=r"avail\.idx is 5000"):
        ring.enable_notifications()
    with pytest.raises(RemoteError, match="broken until"):
        ring.enable_notifications()


# Byte order, state, set-up


def test_big_endian_ring_has_golden_bytes() -> None:
    # virtio 1.4, 2.7.3
    memory = RawRing(SIZE, ">")
    memory.describe(2, 0x1122334455667788, 0x01020304, NEXT, 3)
    memory.describe(3, 0x1000, 8, WRITE)
    memory.offer(2)
    assert bytes(memory.descriptors[32:48]).hex() == "11223344556677880102030400010003"
    ring = SplitDeviceRing(SIZE, memory, big_endian=True, event_idx=True)
    assert ring.refresh() == 1
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, chain.readable, chain.writable) == (2, [(0x1122334455667788, 0x01020304)], [(0x1000, 8)])
    ring.push(2, 5)
    assert ring.publish()
    assert bytes(memory.used[:12]).hex() == "000000010000000200000005"
    ring.enable_notifications()
    assert bytes(memory.used[-2:]).hex() == "0001"


def test_big_endian_flag_has_golden_bytes() -> None:
    memory = RawRing(SIZE, ">")
    ring = SplitDeviceRing(SIZE, memory, big_endian=True)
    ring.disable_notifications()
    assert bytes(memory.used[:2]).hex() == "0001"


def test_big_endian_indirect_table_is_read_in_that_order() -> None:
    memory = RawRing(SIZE, ">")
    memory.describe(0, 0x7000, memory.table(0x7000, (0x1000, 16, WRITE, 0)), INDIRECT)
    memory.offer(0)
    ring = SplitDeviceRing(SIZE, memory, big_endian=True, indirect=True)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert chain.writable == [(0x1000, 16)]


def test_ring_from_saved_indices_goes_on_there() -> None:
    memory = RawRing(SIZE)
    memory.describe(6, 0x1000, 4)
    memory.available_index = 65535
    memory.offer(6)
    ring = SplitDeviceRing(SIZE, memory, last_available=65535, used_index=65533)
    assert ring.refresh() == 1
    assert ring.pending == 1
    chain = ring.pop()
    assert chain is not None
    assert (chain.head, ring.last_available, ring.pending) == (6, 0, 0)
    ring.push(6, 0)
    assert ring.publish()
    assert memory.used_index == 65534


@pytest.mark.parametrize("size", [0, 3, 48, 65536])
def test_ring_size_that_is_no_queue_size_is_a_local_error(size: int) -> None:
    # virtio 1.4, 2.7: a power of two, up to 32768
    with pytest.raises(LocalError, match="power of two"):
        SplitDeviceRing(size, MappedRing(1))


@pytest.mark.parametrize("area", ["descriptors", "available", "used"])
def test_ring_area_too_small_is_a_local_error(area: str) -> None:
    memory = MappedRing(SIZE)
    setattr(memory, area, getattr(memory, area)[:-1])
    with pytest.raises(LocalError, match=f"the {area} area"):
        SplitDeviceRing(SIZE, memory)


# Remote memory: copies are counted, and what a copy may be trusted with


def remote(*, event_idx: bool = False) -> tuple[RawRing, ShadowRing, SplitDeviceRing]:
    memory = RawRing(SIZE)
    shadow = ShadowRing(memory, random.Random(1), lambda: None)
    for index in range(SIZE):
        memory.describe(index, 0x1000 * (index + 1), 4)
    return memory, shadow, SplitDeviceRing(SIZE, shadow, event_idx=event_idx)


def test_refresh_remote_with_index_from_the_kick_needs_one_copy() -> None:
    memory, shadow, ring = remote()
    memory.offer(0, 1)
    assert ring.refresh(2) == 2
    assert shadow.fetches == 1


def test_refresh_remote_without_index_needs_two_copies_and_one_when_there_is_nothing() -> None:
    memory, shadow, ring = remote()
    assert ring.refresh() == 0
    assert shadow.fetches == 1
    memory.offer(0, 1)
    assert ring.refresh() == 2
    assert shadow.fetches == 3


def test_refresh_remote_index_seen_in_the_copy_is_trusted_with_the_next_copy() -> None:
    memory, shadow, ring = remote()
    memory.offer(0, 1, 2)
    assert ring.refresh(1) == 1
    assert ring.pop() is not None
    assert ring.pop() is None
    assert ring.refresh() == 2
    assert shadow.fetches == 2


def test_refresh_remote_late_kick_costs_nothing() -> None:
    memory, shadow, ring = remote()
    memory.offer(0, 1)
    assert ring.refresh(2) == 2
    while ring.pop() is not None:
        pass
    assert ring.refresh(1) == 0
    assert ring.refresh(2) == 0
    assert shadow.fetches == 1


def test_refresh_remote_late_kick_takes_nothing_back() -> None:
    memory, shadow, ring = remote()
    memory.offer(0, 1, 2)
    assert ring.refresh(3) == 3
    assert ring.refresh(1) == 3
    assert shadow.fetches == 1


def test_refresh_remote_kick_ahead_of_the_ring_is_only_a_hint() -> None:
    # docs/protocol.md, P6.3: what the copy does not show is not there, whatever the kick said.
    memory, _, ring = remote()
    memory.offer(0)
    assert ring.refresh(3) == 0
    assert ring.refresh(None) == 1
    assert not ring.broken


def test_refresh_remote_descriptor_written_after_its_copy_is_not_used() -> None:
    # docs/protocol.md, P6.2: the driver makes buffer 0 available while the copy runs; the index is seen, the old
    # descriptor was copied.
    memory = RawRing(SIZE)
    memory.describe(1, 0x1000, 4)
    late: list[bool] = []

    class Racing(ShadowRing):
        def fetch_descriptors(self) -> None:
            self.descriptors[:] = memory.descriptors
            if not late:
                memory.describe(0, 0x5000, 64)
                memory.offer(0)
                late.append(True)
            self.available[:] = memory.available

    memory.offer(1)
    ring = SplitDeviceRing(SIZE, Racing(memory, random.Random(1), lambda: None))
    assert ring.refresh(1) == 1
    chain = ring.pop()
    assert chain is not None
    assert chain.head == 1
    assert ring.pop() is None
    assert ring.refresh() == 1
    chain = ring.pop()
    assert chain is not None
    assert chain.readable == [(0x5000, 64)]


def test_publish_remote_is_one_store_and_always_notifies() -> None:
    memory, shadow, ring = remote()
    memory.offer(0, 1)
    ring.refresh(2)
    assert ring.pop() is not None
    assert ring.pop() is not None
    memory.available[0] = 1  # the driver's wish, which a copy made earlier does not show
    ring.push(1, 0)
    ring.push(0, 0)
    assert ring.publish()
    assert not ring.publish()
    assert shadow.stores == 1
    assert memory.used_index == 2
    assert struct.unpack_from("<IIII", memory.used, 4) == (1, 0, 0, 0)


def test_notifications_remote_without_event_idx_cost_nothing() -> None:
    _, shadow, ring = remote()
    ring.disable_notifications()
    assert not ring.enable_notifications()
    assert (shadow.fetches, shadow.stores) == (0, 0)


def test_notifications_remote_with_event_idx_cost_a_store_and_a_copy() -> None:
    memory, shadow, ring = remote(event_idx=True)
    ring.disable_notifications()
    assert not ring.enable_notifications()
    assert (shadow.fetches, shadow.stores) == (1, 1)
    memory.offer(0)
    assert ring.enable_notifications()
    assert ring.refresh() == 1
    assert (shadow.fetches, shadow.stores) == (3, 2)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_in_order_completions_wait_for_those_before_them_and_share_elements(order: tuple[int, ...]) -> None:
    # virtio 1.4, 2.7.9: one element for a batch stands in the slot of its first buffer and has the head of its last
    memory = RawRing(8)
    for index in range(4):
        memory.describe(index, 0x1000 * index, 16, WRITE)
    memory.offer(0, 1, 2, 3)
    ring = SplitDeviceRing(8, memory, in_order=True)
    ring.refresh()
    assert [chain.head for chain in iter(ring.pop, None)] == [0, 1, 2, 3]
    for head in order:
        ring.push(head, 16 if head != 2 else 5)
    assert ring.publish()
    assert memory.used_index == 4
    # 0 and 1 were written whole, so 2 speaks for them; 2 was not, so 3 speaks for itself
    assert struct.unpack_from("<II", memory.used, 4) == (2, 5)
    assert struct.unpack_from("<II", memory.used, 4 + 8 * 3) == (3, 16)
    assert ring.in_hand == 0


def test_in_order_nothing_is_visible_before_the_oldest_is_done() -> None:
    memory = RawRing(4)
    for index in range(2):
        memory.describe(index, 0x1000, 16, WRITE)
    memory.offer(0, 1)
    ring = SplitDeviceRing(4, memory, in_order=True)
    ring.refresh()
    list(iter(ring.pop, None))
    ring.push(1, 16)
    assert not ring.publish()
    assert (memory.used_index, ring.in_hand) == (0, 2)
    with pytest.raises(LocalError, match="not the device's"):
        ring.push(1, 16)
    ring.push(0, 16)
    assert ring.publish()
    assert (memory.used_index, ring.in_hand) == (2, 0)


def test_in_order_request_that_was_rejected_has_a_used_element_of_its_own() -> None:
    # virtio 1.4, 2.7.9: without one it would count as completely written
    memory = RawRing(4)
    memory.describe(0, 0x9000, 32, INDIRECT)
    memory.describe(1, 0x1000, 16, WRITE)
    memory.offer(0, 1)
    ring = SplitDeviceRing(4, memory, indirect=True, in_order=True)
    ring.refresh()
    for chain in list(iter(ring.pop, None)):
        ring.push(chain.head, 16)
    ring.publish()
    assert ring.rejected == 1
    assert struct.unpack_from("<IIII", memory.used, 4) == (0, 0, 1, 16)


def test_in_order_what_is_published_is_not_written_again() -> None:
    memory = RawRing(4)
    for index in range(2):
        memory.describe(index, 0x1000, 16, WRITE)
    memory.offer(0, 1)
    ring = SplitDeviceRing(4, memory, in_order=True)
    ring.refresh()
    for chain in list(iter(ring.pop, None)):
        ring.push(chain.head, 16)
        ring.publish()
    assert struct.unpack_from("<IIII", memory.used, 4) == (0, 16, 1, 16)
