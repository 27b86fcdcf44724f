"""The device side of the packed ring, byte for byte, and every rule that a driver can break (virtio 1.4, 2.8)."""

from __future__ import annotations

import struct

import pytest
from tests.virtio.model import INDIRECT, NEXT, WRITE, RawPackedRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio.device_ring import Chain
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_layout import FIRST_POSITION

pytestmark = pytest.mark.dual

AVAIL, USED = 0x80, 0x8000


def found(ring: PackedDeviceRing) -> Chain | None:
    """The next buffer after another look at the ring."""
    ring.refresh()
    return ring.pop()


def broken(ring: PackedDeviceRing, text: str) -> None:
    """The ring says so at once, and for ever."""
    with pytest.raises(RemoteError, match=text) as caught:
        found(ring)
    assert caught.value.verdict is Verdict.NEEDS_RESET
    assert ring.broken
    for call in (ring.refresh, ring.pop, ring.enable_notifications):
        with pytest.raises(RemoteError, match=text):
            call()


def test_descriptor_format_golden() -> None:
    # 2.8.13: le64 addr, le32 len, le16 id, le16 flags; 2.8.1: AVAIL is bit 7, USED is bit 15
    memory = RawPackedRing(4)
    memory.descriptors[:16] = bytes.fromhex("8877665544332211 00020000 3412 8200")
    ring = PackedDeviceRing(4, memory)
    assert ring.refresh() == 1
    chain = ring.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == ([], [(0x1122334455667788, 512)])
    ring.push(chain.head, 0x1FF)
    assert bytes(memory.descriptors[14:16]) == b"\x82\x00", "not before it is published"
    assert ring.publish()
    # 2.8.2: id as it came, both flags as the wrap counter; 2.8.4: WRITE says that the length counts
    assert bytes(memory.descriptors[8:16]) == bytes.fromhex("ff010000 3412 8280")


def test_chain_id_is_that_of_the_last_descriptor_and_one_used_descriptor_skips_it() -> None:
    # 2.8.6
    memory = RawPackedRing(5)
    for slot, (ident, flags) in enumerate(((7, NEXT), (8, NEXT | WRITE), (9, WRITE), (1, 0))):
        memory.describe(slot, 0x1000 * slot, 16, ident, flags | AVAIL)
    ring = PackedDeviceRing(5, memory)
    assert ring.refresh() == 2
    first, second = ring.pop(), ring.pop()
    assert first is not None
    assert second is not None
    assert (first.readable, first.writable) == ([(0, 16)], [(0x1000, 16), (0x2000, 16)])
    assert (ring.last_available, ring.used_index) == (FIRST_POSITION | 4, FIRST_POSITION)
    ring.push(first.head, 32)
    ring.push(second.head, 0)
    ring.publish()
    assert memory.descriptor(0)[1:] == (32, 9, WRITE | AVAIL | USED)
    assert memory.descriptor(1)[3] == NEXT | WRITE | AVAIL, "skipped"
    assert memory.descriptor(3)[2:] == (1, AVAIL | USED)
    assert ring.used_index == FIRST_POSITION | 4


def test_used_out_of_order_stand_in_order_of_completion() -> None:
    memory = RawPackedRing(4)
    for ident in range(4):
        memory.offer((0x1000, 16, WRITE), ident=ident)
    ring = PackedDeviceRing(4, memory)
    ring.refresh()
    heads = [chain.head for chain in iter(ring.pop, None)]
    for number in (2, 0, 3, 1):
        ring.push(heads[number], number)
    ring.publish()
    assert [memory.descriptor(slot)[1:3] for slot in range(4)] == [(2, 2), (0, 0), (3, 3), (1, 1)]
    assert [memory.descriptor(slot)[3] & WRITE for slot in range(4)] == [WRITE, 0, WRITE, WRITE]


def test_flags_of_the_first_of_a_batch_are_written_last() -> None:
    memory = RawPackedRing(4)
    for ident in range(3):
        memory.offer((0x1000, 16, WRITE), ident=ident)
    ring = PackedDeviceRing(4, memory)
    ring.refresh()
    for chain in list(iter(ring.pop, None)):
        ring.push(chain.head, 16)
    assert [memory.descriptor(slot)[3] & USED for slot in range(3)] == [0, USED, USED]
    ring.publish()
    assert memory.descriptor(0)[3] == WRITE | AVAIL | USED


def test_wrap_counters_turn_at_the_end_of_the_ring() -> None:
    # 2.8.1, with a size that is no power of two
    memory = RawPackedRing(3)
    ring = PackedDeviceRing(3, memory)
    assert ring.refresh() == 0, "zeroes are not available in the first round"
    for turn in range(5):
        place = memory.slot
        memory.offer((0x1000, 8, NEXT), (0x2000, 8, WRITE), ident=turn)
        wrap = 1 if turn in (0, 1, 3, 4) else 0
        assert ring.refresh() == 1
        chain = ring.pop()
        assert chain is not None
        ring.push(chain.head, 8)
        ring.publish()
        assert ring.refresh() == 0
        assert memory.descriptor(place)[3] & (AVAIL | USED) == (AVAIL | USED if wrap else 0)
        assert ring.last_available == (2 * turn + 2) // 3 << 16 | memory.wrap << 15 | memory.slot


def test_indirect_table_is_read_in_order_and_its_other_flags_mean_nothing() -> None:
    # 2.8.7
    memory = RawPackedRing(4)
    length = memory.table(0x9000, (0x1000, 16, 99, 0), (0x2000, 8, 1, WRITE | INDIRECT | NEXT), (0x3000, 8, 0, WRITE))
    memory.offer((0x9000, length, INDIRECT | WRITE), ident=3)
    ring = PackedDeviceRing(4, memory, indirect=True)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == ([(0x1000, 16)], [(0x2000, 8), (0x3000, 8)])
    ring.push(chain.head, 16)
    ring.publish()
    assert memory.descriptor(0)[1:] == (16, 3, WRITE | AVAIL | USED)
    assert ring.used_index == FIRST_POSITION | 1


def test_indirect_table_that_cannot_be_fetched_fails_this_request_only() -> None:
    memory = RawPackedRing(4)
    memory.offer((0x9000, 32, INDIRECT), ident=1)
    memory.offer((0x1000, 16, 0), ident=2)
    ring = PackedDeviceRing(4, memory, indirect=True)
    assert ring.refresh() == 2
    chain = ring.pop()
    assert chain is not None
    assert chain.readable == [(0x1000, 16)]
    assert ring.rejected == 1
    ring.publish()
    assert memory.descriptor(0)[2:] == (1, AVAIL | USED)


@pytest.mark.parametrize(
    ("chain", "indirect", "text"),
    [
        ([(0, 8, NEXT), (0, 8, NEXT)], True, "runs into a descriptor that is not available after 2"),
        ([(0, 8, NEXT)] * 4, True, "runs into a descriptor that is not available after 4"),
        ([(0, 8, WRITE | NEXT), (0, 8, 0)], True, "readable descriptor after a writable"),
        ([(0, 2**32 - 1, NEXT), (0, 2, 0)], True, "more than 2\\^32 bytes"),
        ([(0x9000, 16, INDIRECT)], False, "without the feature"),
        ([(0x9000, 16, INDIRECT | NEXT), (0, 8, 0)], True, "in a list of others"),
        ([(0, 8, NEXT), (0x9000, 16, INDIRECT)], True, "in a list of others"),
        ([(0x9000, 0, INDIRECT)], True, "indirect table of 0 bytes"),
        ([(0x9000, 24, INDIRECT)], True, "indirect table of 24 bytes"),
        ([(0x9000, 80, INDIRECT)], True, "indirect table of 5 descriptors, queue of 4"),
        ([(0xA000, 32, INDIRECT)], True, "readable descriptor after a writable"),
    ],
)
def test_broken_rule_needs_a_reset(chain: list[tuple[int, int, int]], indirect: bool, text: str) -> None:
    # 2.8.6, 2.8.7, 2.8.17, 2.8.19
    memory = RawPackedRing(4)
    memory.table(0x9000, *[(0x1000, 8, 0, 0)] * 5)
    memory.table(0xA000, (0x1000, 8, 0, WRITE), (0x1000, 8, 0, 0))
    memory.offer(*chain)
    broken(PackedDeviceRing(4, memory, indirect=indirect), text)


def test_descriptor_of_the_other_round_is_not_available() -> None:
    for flags in (0, USED, AVAIL | USED):
        memory = RawPackedRing(2)
        memory.describe(0, 0x1000, 8, 0, flags)
        assert PackedDeviceRing(2, memory).refresh() == 0


def test_ring_that_is_in_hand_is_not_read_beyond() -> None:
    """A driver that makes more available than the ring has room for is not served before it has room."""
    memory = RawPackedRing(2)
    memory.offer((0x1000, 8, 0))
    memory.offer((0x1000, 8, 0))
    ring = PackedDeviceRing(2, memory)
    assert ring.refresh() == 2
    heads = [chain.head for chain in iter(ring.pop, None)]
    memory.offer((0x1000, 8, 0))
    assert ring.refresh() == 0
    assert ring.pop() is None
    assert not ring.enable_notifications()
    assert ring.in_hand == 2
    ring.push(heads[0], 0)
    ring.publish()
    assert ring.in_hand == 1


def test_what_is_not_in_hand_cannot_be_given_back() -> None:
    memory = RawPackedRing(2)
    memory.offer((0x1000, 8, WRITE))
    ring = PackedDeviceRing(2, memory)
    ring.refresh()
    chain = ring.pop()
    assert chain is not None
    for head, written in ((chain.head, 2**32), (chain.head, -1), (2, 0), (-1, 0), (chain.head ^ 1, 0)):
        with pytest.raises(LocalError):
            ring.push(head, written)
    ring.push(chain.head, 8)
    with pytest.raises(LocalError, match="not the device's"):
        ring.push(chain.head, 8)


def test_sizes_and_areas_are_checked() -> None:
    for size in (0, 32769):
        with pytest.raises(LocalError, match="1 to 32768"):
            PackedDeviceRing(size, RawPackedRing(1))
    memory = RawPackedRing(3)
    for name in ("descriptors", "available", "used"):
        whole = getattr(memory, name)
        setattr(memory, name, whole[:-1])
        with pytest.raises(LocalError, match="needs"):
            PackedDeviceRing(3, memory)
        setattr(memory, name, whole)


def test_event_suppression_golden() -> None:
    # 2.8.14: le16 position (slot, wrap counter in bit 15), le16 flags
    memory = RawPackedRing(5)
    memory.offer((0x1000, 8, 0))
    ring = PackedDeviceRing(5, memory, event_idx=True)
    ring.refresh()
    assert not ring.enable_notifications()
    assert bytes(memory.used) == bytes.fromhex("0180 0200")
    ring.disable_notifications()
    assert bytes(memory.used) == bytes.fromhex("0000 0100")
    plain = PackedDeviceRing(5, memory)
    plain.refresh()
    assert not plain.enable_notifications()
    assert bytes(memory.used) == bytes(4)
    memory.offer((0x1000, 8, 0))
    assert plain.enable_notifications(), "there is one that refresh has not found"


@pytest.mark.parametrize(
    ("event", "event_idx", "notify"),
    [
        ("0000 0000", False, True),
        ("0000 0100", False, False),
        ("0380 0100", True, False),
        ("0280 0200", True, True),  # the two used descriptors lead from slot 2 over 3 to 4
        ("0380 0200", True, True),
        ("0480 0200", True, False),
        ("0180 0200", True, False),
        ("0200 0200", True, False),  # the same slot a round later
        ("0480 0200", False, True),  # without the feature DESC means nothing, as 3 does
        ("0000 0300", True, True),
        ("0580 0200", True, True),  # no slot of this ring
    ],
)
def test_used_notification_as_the_driver_asked(event: str, event_idx: bool, notify: bool) -> None:
    # 2.8.10
    memory = RawPackedRing(5)
    ring = PackedDeviceRing(5, memory, event_idx=event_idx)
    for count in (2, 2):
        for _ in range(count):
            memory.offer((0x1000, 8, 0))
        ring.refresh()
        for chain in list(iter(ring.pop, None)):
            ring.push(chain.head, 0)
        memory.available[:] = bytes.fromhex(event)
        told = ring.publish()
    assert told is notify
    assert not ring.publish(), "nothing more was pushed"


def test_positions_that_were_saved_are_where_another_ring_goes_on() -> None:
    memory = RawPackedRing(3)
    ring = PackedDeviceRing(3, memory)
    for _ in range(4):
        memory.offer((0x1000, 8, 0))
        ring.refresh()
        chain = ring.pop()
        assert chain is not None
        ring.push(chain.head, 0)
        ring.publish()
    assert (ring.last_available, ring.used_index) == (0x1_0001, 0x0001)
    memory.offer((0x4000, 8, 0))
    for position in (ring.last_available, ring.last_available & 0xFFFF):
        other = PackedDeviceRing(3, memory, last_available=position, used_index=ring.used_index)
        assert other.last_available == ring.last_available
        assert other.refresh() == 1
        chain = other.pop()
        assert chain is not None
        assert chain.readable == [(0x4000, 8)]


def test_index_of_a_kick_counts_only_where_it_can_be() -> None:
    ring = PackedDeviceRing(4, RawPackedRing(4), last_available=0x0005_0002, used_index=0x0002)
    assert ring.ahead(0x0005_0003) == 1
    assert ring.ahead(0x0006_8000) == 2
    assert ring.ahead(0x0006_8002) == 4
    for late_or_wrong in (0x0005_0002, 0x0005_0001, 0x0004_8003, 0x0006_8003, 0x0006_0000, 0x0005_8003, 0x0005_0004):
        assert ring.ahead(late_or_wrong) == 0, hex(late_or_wrong)
    memory = RawPackedRing(4)
    for _ in range(2):
        memory.offer((0x1000, 8, 0))
    in_hand = PackedDeviceRing(4, memory)
    in_hand.refresh()
    list(iter(in_hand.pop, None))
    assert in_hand.ahead(0x1_0000) == 2
    assert in_hand.ahead(0x1_0001) == 0, "no driver can be there while two descriptors are not used"
    last = PackedDeviceRing(4, RawPackedRing(4), last_available=0xFFFF_0003, used_index=0x0003)
    assert last.ahead(0x0000_8001) == 2, "rounds are counted modulo 65536"


def test_used_of_two_halves_is_one_doubleword() -> None:
    """What the ring asks remote memory for: everything behind the first used descriptor, then that one."""
    asked: list[tuple[int, int, bytes]] = []

    class Remote(RawPackedRing):
        remote = True

        def store_run(self, first: int, count: int) -> None:
            asked.append((first, count, bytes(self.descriptors[16 * first + 8 : 16 * first + 16])))

    memory = Remote(4)
    ring = PackedDeviceRing(4, memory)
    for count in (1, 3):
        for ident in range(count):
            memory.offer((0x1000, 8, WRITE), ident=ident)
        ring.refresh(memory.wrap << 15 | memory.slot | (1 - memory.wrap) << 16)
        for chain in list(iter(ring.pop, None)):
            ring.push(chain.head, 8)
        assert ring.publish()
    used = struct.pack("<IHH", 8, 0, WRITE | AVAIL | USED)
    assert asked == [(0, 1, used), (1, 3, used)]


def test_in_order_request_that_was_rejected_has_a_used_descriptor_of_its_own() -> None:
    # 2.8.8: without one it would count as completely written
    memory = RawPackedRing(4)
    memory.offer((0x9000, 32, INDIRECT), ident=1)
    memory.offer((0x1000, 16, WRITE), ident=2)
    ring = PackedDeviceRing(4, memory, indirect=True, in_order=True)
    ring.refresh()
    for chain in list(iter(ring.pop, None)):
        ring.push(chain.head, 16)
    ring.publish()
    assert ring.rejected == 1
    assert memory.descriptor(0)[2:] == (1, AVAIL | USED)
    assert memory.descriptor(1)[1:] == (16, 2, WRITE | AVAIL | USED)


def test_in_order_what_is_published_is_not_written_again() -> None:
    memory = RawPackedRing(4)
    for ident in range(2):
        memory.offer((0x1000, 16, WRITE), ident=ident)
    ring = PackedDeviceRing(4, memory, in_order=True)
    ring.refresh()
    for chain in list(iter(ring.pop, None)):
        ring.push(chain.head, 16)
        ring.publish()
    assert [memory.descriptor(slot)[1:] for slot in range(2)] == [(16, n, WRITE | AVAIL | USED) for n in range(2)]
