"""The driver side of the packed ring, byte for byte, and every lie that a device can tell (virtio 1.4, 2.8)."""

from __future__ import annotations

import pytest
from tests.virtio.model import NEXT, WRITE, RawPackedRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.packed_layout import FIRST_POSITION

pytestmark = pytest.mark.dual

AVAIL, USED = 0x80, 0x8000


def use(memory: RawPackedRing, slot: int, ident: int, written: int, *, wrap: int = 1) -> None:
    """As a device would."""
    memory.describe(slot, 0, written, ident, (WRITE if written else 0) | (AVAIL | USED if wrap else 0))


def test_chain_golden() -> None:
    # 2.8.13, 2.8.6: the id is in the last descriptor at least, AVAIL and USED in all
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory)
    head = ring.add([(0x1122334455667788, 16), (0x2000, 512)], 1, "token")
    ident = head.to_bytes(2, "little").hex()
    assert bytes(memory.descriptors[:32]) == bytes.fromhex(
        f"8877665544332211 10000000 {ident} 0000 0020000000000000 00020000 {ident} 8200"
    ), "the first descriptor's flags are still missing"
    assert ring.publish()
    assert memory.descriptor(0)[3] == NEXT | AVAIL
    assert ring.published_index == FIRST_POSITION | 2


def test_flags_of_the_first_of_a_batch_are_written_last() -> None:
    # 2.8.21.1
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory)
    for number in range(3):
        ring.add([(0x1000, 8)], 0, number)
    assert [memory.descriptor(slot)[3] for slot in range(4)] == [0, WRITE | AVAIL, WRITE | AVAIL, 0]
    ring.publish()
    assert memory.descriptor(0)[3] == WRITE | AVAIL


def test_indirect_golden() -> None:
    # 2.8.7: in order, WRITE is the only flag, ids are reserved
    memory = RawPackedRing(2)
    table = memoryview(bytearray(40))
    ring = PackedDriverRing(2, memory, indirect=True)
    head = ring.add([(0x1000, 16), (0x2000, 8)], 1, None, (table, 0x9000))
    ring.publish()
    assert bytes(table) == bytes.fromhex(
        "0010000000000000 10000000 0000 0000 0020000000000000 08000000 0000 0200 0000000000000000"
    )
    assert memory.descriptor(0) == (0x9000, 32, head, 4 | AVAIL)
    assert ring.free_descriptors == 1


def test_wrap_counter_turns_and_ids_come_back_in_any_order() -> None:
    memory = RawPackedRing(3)
    ring = PackedDriverRing(3, memory)
    heads = [ring.add([(0x1000, 8)], 0, number) for number in range(3)]
    assert sorted(heads) == [0, 1, 2]
    assert ring.add([(0x1000, 8)], 0, 3) == -1
    ring.publish()
    assert ring.published_index == 0x1_0000
    use(memory, 0, heads[2], 5)
    assert ring.reap() == (2, 5)
    assert ring.last_used == FIRST_POSITION | 1
    assert ring.add([(0x1000, 8)], 0, 4) == heads[2]
    ring.publish()
    assert memory.descriptor(0)[3] == WRITE | USED
    assert ring.published_index == 0x1_0001
    use(memory, 1, heads[0], 0)
    use(memory, 2, heads[1], 8)
    assert [ring.reap() for _ in range(3)] == [(0, 0), (1, 8), None]
    assert ring.last_used == 0
    use(memory, 0, heads[2], 1, wrap=0)
    assert ring.reap() == (4, 1)


def test_length_without_write_is_reserved() -> None:
    # 2.8.4
    memory = RawPackedRing(2)
    ring = PackedDriverRing(2, memory)
    head = ring.add([(0x1000, 8)], 0, "a")
    ring.publish()
    memory.describe(0, 0, 2**32 - 1, head, AVAIL | USED)
    assert ring.reap() == ("a", 0)


@pytest.mark.parametrize(
    ("ident", "written", "text"),
    [(2, 0, "no buffer in flight"), (0xFFFF, 0, "no buffer in flight"), (None, 9, "9 for id")],
)
def test_lie_of_the_device_breaks_the_ring(ident: int | None, written: int, text: str) -> None:
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory)
    head = ring.add([(0x1000, 8), (0x1000, 8)], 1, "a")
    ring.publish()
    use(memory, 0, head if ident is None else ident, written)
    for _ in range(2):
        with pytest.raises(RemoteError, match=text) as caught:
            ring.reap()
        assert caught.value.verdict is Verdict.NEEDS_RESET
    assert ring.drain() == ["a"]
    assert ring.free_descriptors == 4


def test_buffer_that_was_not_published_cannot_be_used() -> None:
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory)
    first = ring.add([(0x1000, 8)], 0, "a")
    ring.publish()
    second = ring.add([(0x1000, 8)], 0, "b")
    use(memory, 0, second, 0)
    with pytest.raises(RemoteError, match="no buffer in flight"):
        ring.reap()
    assert first != second
    assert ring.drain() == ["a", "b"]


def test_used_twice_breaks_the_ring() -> None:
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory)
    head = ring.add([(0x1000, 8)], 0, "a")
    ring.publish()
    use(memory, 0, head, 8)
    use(memory, 1, head, 8)
    assert ring.reap() == ("a", 8)
    with pytest.raises(RemoteError, match="no buffer in flight"):
        ring.reap()


def test_in_order_one_descriptor_gives_back_all_before_it() -> None:
    # 2.8.8: those without a descriptor of their own were used completely
    memory = RawPackedRing(8)
    ring = PackedDriverRing(8, memory, in_order=True)
    heads = [ring.add([(0x1000, 8), (0x2000, 16)], 1, number) for number in range(4)]
    ring.publish()
    use(memory, 0, heads[2], 3)
    assert [ring.reap(), ring.reap()] == [(0, 16), (1, 16)]
    assert ring.enable_interrupts(), "there is more without another look at the ring"
    assert ring.free_descriptors == 4
    assert [ring.reap(), ring.reap()] == [(2, 3), None]
    assert ring.last_used == FIRST_POSITION | 6
    use(memory, 6, heads[3], 16)
    assert ring.reap() == (3, 16)
    assert ring.last_used == 0


def test_event_suppression_golden() -> None:
    # 2.8.14
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory, event_idx=True)
    head = ring.add([(0x1000, 8)], 0, "a")
    ring.publish()
    use(memory, 0, head, 0)
    assert ring.enable_interrupts()
    assert bytes(memory.available) == bytes.fromhex("0080 0200")
    ring.reap()
    assert not ring.enable_interrupts()
    assert bytes(memory.available) == bytes.fromhex("0180 0200")
    ring.disable_interrupts()
    assert bytes(memory.available) == bytes.fromhex("0000 0100")
    plain = PackedDriverRing(4, memory)
    assert bytes(memory.available) == bytes(4)
    plain.disable_interrupts()
    assert not plain.enable_interrupts()
    assert bytes(memory.available) == bytes(4)


@pytest.mark.parametrize(
    ("event", "kick"), [("0080 0200", True), ("0180 0200", True), ("0280 0200", False), ("0000 0100", False)]
)
def test_kick_as_the_device_asked(event: str, kick: bool) -> None:
    # 2.8.10, 2.8.21.2
    memory = RawPackedRing(4)
    ring = PackedDriverRing(4, memory, event_idx=True)
    memory.used[:] = bytes.fromhex(event)
    ring.add([(0x1000, 8), (0x2000, 8)], 1, "a")
    assert ring.publish() is kick
    assert not ring.publish(), "nothing more was added"


def test_what_no_device_may_be_given_is_refused() -> None:
    memory = RawPackedRing(2)
    ring = PackedDriverRing(2, memory)
    table = (memoryview(bytearray(32)), 0x9000)
    for segments, readable, place in (
        ([], 0, None),
        ([(0, 8)] * 3, 0, None),
        ([(0, 8)], 2, None),
        ([(0, 8)], -1, None),
        ([(0, 0)], 0, None),
        ([(0, 2**32)], 0, None),
        ([(0, 2**32 - 1), (0, 2)], 0, None),
        ([(0, 8)], 0, table),
    ):
        with pytest.raises(LocalError):
            ring.add(segments, readable, None, place)
    assert ring.free_descriptors == 2
    assert ring.in_flight == []
    assert not any(memory.descriptors)


def test_after_drain_nothing_is_read_or_written() -> None:
    memory = RawPackedRing(2)
    ring = PackedDriverRing(2, memory)
    ring.add([(0, 8)], 0, "a")
    assert ring.drain() == ["a"]
    before = [bytes(area) for area in (memory.descriptors, memory.available, memory.used)]
    assert not ring.publish()
    assert not ring.enable_interrupts()
    ring.disable_interrupts()
    with pytest.raises(RemoteError, match="session is over"):
        ring.add([(0, 8)], 0, "b")
    with pytest.raises(RemoteError, match="session is over"):
        ring.reap()
    assert before == [bytes(area) for area in (memory.descriptors, memory.available, memory.used)]
