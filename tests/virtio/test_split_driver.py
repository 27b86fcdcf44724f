"""The driver side of the split ring: its own books, golden bytes, and what a device can do wrong."""

from __future__ import annotations

import random
import struct

import pytest
from tests.virtio.model import RawRing, ShadowRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio.split_driver import SplitDriverRing

pytestmark = pytest.mark.dual

SIZE = 8


def added(memory: RawRing, *buffers: int, event_idx: bool = False) -> SplitDriverRing:
    """A ring with published buffers of so many writable bytes; tokens 0, 1, ..."""
    ring = SplitDriverRing(SIZE, memory, event_idx=event_idx)
    for token, length in enumerate(buffers):
        assert ring.add([(0x1000 * (token + 1), length)], 0, token) == token
    ring.publish()
    return ring


def refused(ring: SplitDriverRing, words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        ring.reap()
    assert caught.value.verdict is Verdict.NEEDS_RESET
    assert ring.broken
    with pytest.raises(RemoteError, match="broken until it is reset"):
        ring.reap()
    with pytest.raises(RemoteError, match="broken until it is reset"):
        ring.add([(0, 1)], 0, None)


def test_add_direct_has_golden_bytes() -> None:
    # virtio 1.4, 2.7.5, 2.7.6
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory)
    assert ring.add([(0x1000, 16), (0x2000, 4096), (0x3000, 1)], 1, "a") == 0
    assert bytes(memory.descriptors[:48]).hex() == (
        "0010000000000000" "10000000" "0100" "0100"
        "0020000000000000" "00100000" "0300" "0200"
        "0030000000000000" "01000000" "0200" "0000"
    )  # fmt: skip
    assert bytes(memory.available[:6]).hex() == "000000000000"
    assert ring.publish()
    assert bytes(memory.available[:6]).hex() == "000001000000"
    assert ring.free_descriptors == SIZE - 3


def test_add_big_endian_has_golden_bytes() -> None:
    # virtio 1.4, 2.7.3
    memory = RawRing(SIZE, ">")
    ring = SplitDriverRing(SIZE, memory, big_endian=True, event_idx=True)
    ring.add([(0x1000, 16)], 1, "a")
    ring.add([(0x2000, 4096)], 0, "b")
    assert ring.publish()
    assert bytes(memory.descriptors[:32]).hex() == (
        "0000000000001000" "00000010" "0000" "0000"
        "0000000000002000" "00001000" "0002" "0000"
    )  # fmt: skip
    assert bytes(memory.available[:8]).hex() == "0000000200000001"
    memory.use(0, (1, 9))
    assert ring.reap() == ("b", 9)
    assert not ring.enable_interrupts()
    assert bytes(memory.available[-2:]).hex() == "0001"


def test_add_with_table_uses_one_descriptor_and_has_golden_bytes() -> None:
    # virtio 1.4, 2.7.5.3
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory, indirect=True)
    table = memoryview(bytearray(40))
    assert ring.add([(0x1000, 16), (0x2000, 4096)], 1, "a", (table, 0x9000)) == 0
    assert bytes(memory.descriptors[:16]).hex() == "00900000000000002000000004000000"
    assert bytes(table).hex() == (
        "0010000000000000" "10000000" "0100" "0100"
        "0020000000000000" "00100000" "0200" "0000"
        "0000000000000000"
    )  # fmt: skip
    assert ring.free_descriptors == SIZE - 1


def test_add_no_room_does_nothing() -> None:
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory, indirect=True)
    assert ring.add([(0x1000 * n, 1) for n in range(1, SIZE)], 0, "a") == 0
    before = bytes(memory.descriptors), bytes(memory.available)
    assert ring.add([(0, 1), (0, 1)], 0, "b") == -1
    assert (bytes(memory.descriptors), bytes(memory.available)) == before
    assert (ring.free_descriptors, ring.available_index, ring.in_flight) == (1, 1, ["a"])
    assert ring.add([(0, 1), (0x10, 1)], 0, "b", (memoryview(bytearray(32)), 0x9000)) == 7
    assert ring.add([(0, 1)], 0, "c") == -1


@pytest.mark.parametrize(
    ("segments", "readable", "words"),
    [
        ([], 0, "0 segments"),
        ([(0, 1)] * (SIZE + 1), 0, "9 segments"),
        ([(0, 1)], 2, "2 readable"),
        ([(0, 1)], -1, "-1 readable"),
        ([(0, 0)], 0, "segment of 0"),
        ([(0, 2**32)], 0, "segment of 4294967296"),
        ([(0, 2**32 - 1), (0, 2)], 1, "more than 2\\^32"),
    ],
)
def test_add_buffer_that_no_device_may_be_given_is_a_local_error(
    segments: list[tuple[int, int]], readable: int, words: str
) -> None:
    # virtio 1.4, 2.7.5.2, 2.7.5.3.1
    ring = SplitDriverRing(SIZE, RawRing(SIZE))
    with pytest.raises(LocalError, match=words):
        ring.add(segments, readable, None)
    assert ring.free_descriptors == SIZE


def test_add_table_without_the_feature_is_a_local_error() -> None:
    ring = SplitDriverRing(SIZE, RawRing(SIZE))
    with pytest.raises(LocalError, match="without the feature"):
        ring.add([(0, 1)], 0, None, (memoryview(bytearray(16)), 0))


def test_add_table_too_small_is_a_local_error() -> None:
    ring = SplitDriverRing(SIZE, RawRing(SIZE), indirect=True)
    with pytest.raises(LocalError, match="do not fit"):
        ring.add([(0, 1), (0, 1)], 0, None, (memoryview(bytearray(31)), 0))


def test_ring_areas_are_cleared_at_the_start() -> None:
    # virtio 1.4, 2.7.10.1: the driver initializes used.flags to 0
    memory = RawRing(SIZE)
    for area in (memory.descriptors, memory.available, memory.used):
        area[:] = b"\xff" * area.nbytes
    SplitDriverRing(SIZE, memory)
    assert not any((*memory.descriptors, *memory.available, *memory.used))


def test_ring_in_remote_memory_is_a_local_error() -> None:
    shadow = ShadowRing(RawRing(SIZE), random.Random(1), lambda: None)
    with pytest.raises(LocalError, match="own memory"):
        SplitDriverRing(SIZE, shadow)


def test_reap_gives_tokens_in_the_order_of_use_and_frees_descriptors() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10, 20, 30)
    assert ring.reap() is None
    memory.use(0, (2, 30), (0, 0))
    assert ring.reap() == (2, 30)
    assert ring.reap() == (0, 0)
    assert ring.reap() is None
    assert (ring.in_flight, ring.free_descriptors, ring.last_used) == ([1], SIZE - 1, 2)


def test_reap_chain_is_freed_by_private_links() -> None:
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory)
    ring.add([(0x1000, 1), (0x2000, 1), (0x3000, 1)], 0, "a")
    ring.publish()
    memory.descriptors[:] = b"\xff" * memory.descriptors.nbytes  # as a device that writes where it must not
    memory.use(0, (0, 3))
    assert ring.reap() == ("a", 3)
    assert ring.free_descriptors == SIZE
    assert ring.add([(0x1000 * n, 1) for n in range(1, SIZE + 1)], 0, "b") == 0
    order = [struct.unpack_from("<H", memory.descriptors, 16 * index + 14)[0] for index in range(SIZE)]
    assert order == [1, 2, 3, 4, 5, 6, 7, 0]


def test_reap_unknown_id_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    memory.use(0, (SIZE, 0))
    refused(ring, "used id 8")


@pytest.mark.parametrize("head", [0xFFFFFFFF, 0x10000])
def test_reap_id_of_more_than_16_bits_breaks_the_ring(head: int) -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    memory.use(0, (head, 0))
    refused(ring, f"used id {head}")


def test_reap_id_not_in_flight_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    memory.use(0, (1, 0))
    refused(ring, "used id 1")


def test_reap_same_id_twice_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10, 10)
    memory.use(0, (0, 0), (0, 0))
    assert ring.reap() == (0, 0)
    refused(ring, "used id 0")


def test_reap_id_in_the_middle_of_a_chain_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory)
    ring.add([(0x1000, 1), (0x2000, 1)], 0, "a")
    ring.publish()
    memory.use(0, (1, 0))
    refused(ring, "used id 1")


def test_reap_buffer_that_was_not_published_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    assert ring.add([(0x5000, 4)], 0, "later") == 1
    memory.use(0, (1, 0))
    refused(ring, "used id 1")


def test_reap_index_ahead_of_what_is_in_flight_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    memory.use(0, (0, 0), (0, 0))
    refused(ring, "used.idx is 2 ahead when 1")


def test_reap_index_going_back_breaks_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10, 10)
    memory.use(0, (0, 0))
    assert ring.reap() == (0, 0)
    memory.use(0)
    refused(ring, "65535 ahead")


def test_reap_more_bytes_than_writable_breaks_the_ring() -> None:
    # virtio 1.4, 2.7.8.2: len is never an overestimate
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory)
    ring.add([(0x1000, 100), (0x2000, 10)], 1, "a")
    ring.publish()
    memory.use(0, (0, 11))
    refused(ring, "used length 11 for head 0 that has 10")


def test_drain_gives_all_tokens_oldest_first_and_ends_the_ring() -> None:
    memory = RawRing(SIZE)
    ring = added(memory, 10, 10, 10)
    memory.use(0, (1, 0))
    assert ring.reap() == (1, 0)
    assert ring.add([(0x1000, 1)], 0, "new") == 1
    assert ring.in_flight == [0, 2, "new"]
    assert ring.drain() == [0, 2, "new"]
    assert ring.in_flight == []
    assert ring.free_descriptors == SIZE
    with pytest.raises(RemoteError, match="session is over"):
        ring.reap()


def test_publish_nothing_added_does_not_kick() -> None:
    assert not SplitDriverRing(SIZE, RawRing(SIZE)).publish()


@pytest.mark.parametrize(("flags", "kick"), [(0, True), (1, False)])
def test_publish_without_event_idx_follows_the_flag(flags: int, kick: bool) -> None:
    # virtio 1.4, 2.7.10.1
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory)
    ring.add([(0x1000, 1)], 0, None)
    memory.used[0] = flags
    assert ring.publish() is kick


@pytest.mark.parametrize(("event", "kick"), [(65535, False), (0, True), (1, True), (2, True), (3, False)])
def test_publish_with_event_idx_kicks_when_the_index_is_passed(event: int, kick: bool) -> None:
    # virtio 1.4, 2.7.10.1; the lower bit of flags is ignored
    memory = RawRing(SIZE)
    ring = SplitDriverRing(SIZE, memory, event_idx=True)
    for _ in range(3):
        ring.add([(0x1000, 1)], 0, None)
    memory.used[0] = 1
    memory.used[-2:] = struct.pack("<H", event)
    assert ring.publish() is kick


def test_interrupts_without_event_idx_are_switched_by_the_flag() -> None:
    # virtio 1.4, 2.7.7.1
    memory = RawRing(SIZE)
    ring = added(memory, 10)
    ring.disable_interrupts()
    assert bytes(memory.available[:2]) == b"\x01\x00"
    assert not ring.enable_interrupts()
    assert bytes(memory.available[:2]) == b"\x00\x00"
    memory.use(0, (0, 0))
    assert ring.enable_interrupts()


def test_interrupts_with_event_idx_are_armed_at_the_next_index_and_flags_stay_0() -> None:
    # virtio 1.4, 2.7.7.1
    memory = RawRing(SIZE)
    ring = added(memory, 10, 10, event_idx=True)
    memory.use(0, (0, 0))
    assert ring.reap() is not None
    assert not ring.enable_interrupts()
    assert bytes(memory.available[-2:]) == b"\x01\x00"
    ring.disable_interrupts()
    assert bytes(memory.available[-2:]) == b"\x00\x00"
    assert bytes(memory.available[:2]) == b"\x00\x00"


def test_in_order_one_element_gives_back_all_before_it() -> None:
    # virtio 1.4, 2.7.9: those without an element of their own were used completely
    memory = RawRing(8)
    ring = SplitDriverRing(8, memory, in_order=True)
    heads = [ring.add([(0x1000, 8), (0x2000, 16)], 1, number) for number in range(4)]
    assert heads == [0, 2, 4, 6]
    ring.publish()
    memory.use(0, (heads[2], 3), (99, 99), (99, 99))
    assert [ring.reap(), ring.reap()] == [(0, 16), (1, 16)]
    assert ring.enable_interrupts(), "there is more without another look at the ring"
    assert ring.add([(0x1000, 8)], 1, 4) == 0, "descriptors are taken in the order of the table"
    assert [ring.reap(), ring.reap()] == [(2, 3), None]
    memory.use(3, (heads[3], 16))
    assert [ring.reap(), ring.reap()] == [(3, 16), None]
    assert ring.last_used == 4


def test_in_order_element_that_covers_more_than_the_index_breaks_the_ring() -> None:
    memory = RawRing(8)
    ring = SplitDriverRing(8, memory, in_order=True)
    heads = [ring.add([(0x1000, 8)], 0, number) for number in range(3)]
    ring.publish()
    memory.use(0, (heads[2], 8), (0, 0))
    with pytest.raises(RemoteError, match=r"covers 3 buffers when used\.idx moved by 2"):
        ring.reap()
    assert ring.drain() == [0, 1, 2]


def test_in_order_last_descriptor_of_the_table_goes_on_at_the_first() -> None:
    # virtio 1.4, 2.7.9: next is x + 1, or 0 at the end
    memory = RawRing(4)
    ring = SplitDriverRing(4, memory, in_order=True)
    for number in range(5):
        head = ring.add([(0x1000, 8), (0x2000, 8), (0x3000, 8)], 1, number)
        assert head == 3 * number % 4
        at = head
        for following in ((head + 1) % 4, (head + 2) % 4):
            assert struct.unpack_from("<H", memory.descriptors, 16 * at + 14)[0] == following
            at = following
        ring.publish()
        memory.use(number, (head, 16))
        assert ring.reap() == (number, 16)
