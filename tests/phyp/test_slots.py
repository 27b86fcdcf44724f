"""The owner's side of a queue (papr-vio 3.1)."""

from __future__ import annotations

import pytest

from powervio.vio.slots import CrqSlots

pytestmark = pytest.mark.dual

PAGE = 4096


def element(high: int, low: int) -> bytes:
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def test_next_empty_queue_is_none() -> None:
    assert CrqSlots(memoryview(bytearray(PAGE))).next() is None


def test_next_element_is_taken_and_only_its_header_is_freed() -> None:
    memory = bytearray(PAGE)
    memory[:16] = element(0x8001_0203_0405_0607, 0x0809_0A0B_0C0D_0E0F)
    slots = CrqSlots(memoryview(memory))
    assert slots.waiting()
    assert slots.next() == (0x8001_0203_0405_0607, 0x0809_0A0B_0C0D_0E0F)
    assert memory[:16] == bytes(range(16))
    assert not slots.waiting()


def test_next_second_slot_is_not_taken_before_the_first() -> None:
    memory = bytearray(PAGE)
    memory[16:32] = element(0x80 << 56, 2)
    slots = CrqSlots(memoryview(memory))
    assert slots.next() is None
    memory[:16] = element(0x80 << 56, 1)
    assert slots.next() == (0x80 << 56, 1)
    assert slots.next() == (0x80 << 56, 2)


@pytest.mark.parametrize("pages", [1, 2])
def test_next_after_the_last_slot_is_the_first(pages: int) -> None:
    memory = bytearray(pages * PAGE)
    slots = CrqSlots(memoryview(memory))
    for number in range(pages * 256 * 2):
        offset = number % (pages * 256) * 16
        memory[offset : offset + 16] = element(2**64 - 1, number)
        assert slots.next() == (2**64 - 1, number)
    assert slots.length == pages * PAGE


def test_next_queue_inside_a_larger_area_stays_inside() -> None:
    memory = bytearray(3 * PAGE)
    memory[PAGE : PAGE + 16] = element(0x80 << 56, 5)
    memory[2 * PAGE :] = b"\xff" * PAGE
    slots = CrqSlots(memoryview(memory)[PAGE : 2 * PAGE])
    assert list(iter(slots.next, None)) == [(0x80 << 56, 5)]


def test_reset_frees_every_slot_and_starts_again() -> None:
    memory = bytearray(b"\xff" * PAGE)
    slots = CrqSlots(memoryview(memory))
    slots.next()
    slots.reset()
    assert memory == (b"\0" + b"\xff" * 15) * 256
    memory[:16] = element(0x80 << 56, 5)
    assert slots.next() == (0x80 << 56, 5)


@pytest.mark.parametrize("length", [0, 16, PAGE + 16])
def test_length_not_made_of_pages_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        CrqSlots(memoryview(bytearray(length)))


def test_next_wide_takes_32_bytes_and_frees_only_the_header() -> None:
    memory = bytearray(PAGE)
    memory[:32] = bytes((0x80, *range(1, 32)))
    memory[32:64] = bytes((0x80, *range(1, 32)))
    slots = CrqSlots(memoryview(memory), 32)
    words = (0x8001020304050607, 0x08090A0B0C0D0E0F, 0x1011121314151617, 0x18191A1B1C1D1E1F)
    assert [slots.next_wide(), slots.next_wide(), slots.next_wide()] == [words, words, None]
    assert memory[:64] == bytes(range(32)) * 2


def test_next_wide_after_the_last_slot_is_the_first() -> None:
    memory = bytearray(PAGE)
    slots = CrqSlots(memoryview(memory), 32)
    for number in range(300):
        offset = number % 128 * 32
        memory[offset : offset + 32] = element(0x80 << 56, number) * 2
        assert slots.next_wide() == (0x80 << 56, number) * 2


def test_elements_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 16 or 32"):
        CrqSlots(memoryview(bytearray(PAGE)), 64)
