"""The ring of hcalls: both ends in one thread, and a partition that writes whatever it likes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.gateway import layout
from powervio.gateway.calls import DONE, ENDED, TIME_IS_UP, CallRing
from powervio.gateway.layout import SLOT_SIZE
from powervio.gateway.mailbox import Mailbox
from powervio.gateway.server import Gateway
from powervio.gateway.session import Session
from powervio.papr.codes import Hcall, ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.registry import TABLE

pytestmark = pytest.mark.dual

SLOTS = 4
U64 = (1 << 64) - 1


class Ring:
    """Both ends of a ring, and what was called."""

    def __init__(self) -> None:
        self.where = layout.plan(1 << 20, 1, region_size=layout.MIN_REGION, slots=SLOTS)
        self.region = memoryview(bytearray(layout.MIN_REGION))
        self.where.write(self.region)
        self.called: list[tuple[int, ...]] = []
        self.answer: tuple[int, ...] = (0,)
        self.mailbox = Mailbox(self.region, self.where, self.call)
        self.vector, self.socket = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        self.calls = CallRing(self.region, self.where, self.vector, self.socket)

    def call(self, *registers: int) -> tuple[int, ...]:
        self.called.append(registers)
        return self.answer

    def word(self, number: int, offset: int) -> int:
        place = self.where.slots_offset + (number - 1) % SLOTS * SLOT_SIZE + offset
        value: int = struct.unpack_from("<Q", self.region, place)[0]
        return value

    def close(self) -> None:
        os.close(self.vector)
        os.close(self.socket)


def test_posted_slot_is_the_golden_bytes_and_so_is_its_answer() -> None:
    """G2.1, G5.1, G5.3, G5.5, G5.6"""
    ring = Ring()
    number = ring.calls.post(0x108, (0x30000002, 0x8001, U64))
    slot = ring.region[0x1000:0x1100]
    assert bytes(slot[:0x58]) == bytes.fromhex(
        "0100000000000000 0801000000000000 0200003000000000 0180000000000000 ffffffffffffffff"
    ) + bytes(48)
    ring.answer = (-4, 5, U64)
    assert ring.mailbox.turn(8) == (False, False)
    assert ring.called == [(0x108, 0x30000002, 0x8001, U64, 0, 0, 0, 0, 0, 0)]
    assert bytes(slot[0x80:0xE0]) == bytes.fromhex(
        "0100000000000000 0100000000000000 fcffffffffffffff 0500000000000000 ffffffffffffffff"
    ) + bytes(56)
    assert ring.calls.result(number) == (-4, 5, U64, 0, 0, 0, 0, 0, 0, 0)
    ring.close()


def test_several_that_were_posted_are_answered_in_order_by_one_turn() -> None:
    """G5.3, G5.5"""
    ring = Ring()
    numbers = [ring.calls.post(token, ()) for token in (1, 2, 3)]
    assert ring.mailbox.turn(8) == (False, False)
    assert [call[0] for call in ring.called] == [1, 2, 3]
    assert [ring.calls.wait(number, 0, 0) for number in numbers] == [DONE] * 3
    ring.close()


def test_ring_goes_round_and_a_slot_is_free_when_it_is_answered() -> None:
    """G5.2"""
    ring = Ring()
    for number in range(1, SLOTS + 1):
        assert ring.calls.room()
        assert ring.calls.post(number, ()) == number
    assert not ring.calls.room()
    assert ring.mailbox.turn(1) == (True, False)
    assert ring.calls.room()
    for number in range(SLOTS + 1, 5 * SLOTS):
        ring.mailbox.turn(1)
        ring.calls.post(number, ())
    ring.mailbox.turn(100)
    assert [call[0] for call in ring.called] == list(range(1, 5 * SLOTS))
    ring.close()


def test_turn_ends_at_its_limit() -> None:
    """G5.4, G5.7, G5.8"""
    ring = Ring()
    for token in range(4):
        ring.calls.post(token, ())
    assert ring.mailbox.turn(3) == (True, False)
    assert len(ring.called) == 3
    assert not ring.calls.must_ring()  # there is another turn
    assert ring.mailbox.turn(3) == (False, False)
    assert not ring.calls.must_ring()  # it is looked at once more
    ring.mailbox.rest()
    assert ring.calls.must_ring()
    ring.close()


def test_one_that_is_not_posted_holds_up_those_behind_it() -> None:
    """G5.5"""
    ring = Ring()
    struct.pack_into("<Q", ring.region, 0x1000 + SLOT_SIZE, 2)
    assert ring.mailbox.turn(8) == (False, False)
    assert ring.called == []
    struct.pack_into("<Q", ring.region, 0x1000, 1)
    ring.mailbox.turn(8)
    assert len(ring.called) == 2
    ring.close()


def test_sleeper_is_told_by_vector_0_and_nobody_else() -> None:
    """G5.6, G5.9, G6.1"""
    ring = Ring()
    number = ring.calls.post(1, ())
    assert ring.calls.wait(number, 0, 1_000_000) == TIME_IS_UP
    assert ring.word(number, layout.WAITING) == number
    assert ring.mailbox.turn(8) == (False, True)
    ring.calls.post(1, ())
    assert ring.mailbox.turn(8) == (False, False)
    ring.close()


def test_withdrawn_hcall_is_not_carried_out() -> None:
    """G5.10, G5.11"""
    ring = Ring()
    first, second = ring.calls.post(1, ()), ring.calls.post(2, ())
    assert ring.calls.withdraw(first)
    ring.mailbox.turn(8)
    assert [call[0] for call in ring.called] == [2]
    assert ring.calls.result(first)[0] == ReturnCode.H_BUSY
    assert ring.calls.result(second)[0] == 0
    ring.close()


def test_hcall_that_was_taken_is_not_withdrawn() -> None:
    """G5.10"""
    ring = Ring()
    number = ring.calls.post(1, ())
    ring.mailbox.turn(8)
    assert not ring.calls.withdraw(number)
    assert ring.calls.wait(number, 0, 0) == DONE
    ring.close()


def test_end_of_the_connection_ends_a_wait() -> None:
    """G1.6"""
    ring = Ring()
    number = ring.calls.post(1, ())
    os.eventfd_write(ring.socket, 1)
    assert ring.calls.wait(number, 0, 60_000_000_000) == ENDED
    os.eventfd_read(ring.socket)
    struct.pack_into("<I", ring.region, layout.STATE, layout.ENDED)
    assert ring.calls.wait(number, 0, 60_000_000_000) == ENDED
    ring.close()


def test_fault_of_ours_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    ring = Ring()

    def fails(*registers: int) -> tuple[int, ...]:
        raise ValueError(registers)

    mailbox = Mailbox(ring.region, ring.where, fails)
    number = ring.calls.post(0x20, ())
    mailbox.turn(1)
    assert ring.calls.result(number)[0] == ReturnCode.H_HARDWARE
    assert "hcall 0x20 failed" in caplog.text
    ring.close()


# -- whatever a partition writes

TOKENS = st.sampled_from([*TABLE, layout.G_FEATURES, layout.G_TREE, layout.G_DIRECT])


class Hostile:
    """A partition that has a region and writes to it, between two others; everything is in this thread."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.partitions = [self.hypervisor.create_partition(name, 1 << 20) for name in ("vios", "hostile", "other")]
        vios, hostile, other = self.partitions
        for client in (hostile, other):
            self.hypervisor.create_pair(vios, client, client_window=1 << 20, server_window=1 << 20)
        for partition in (vios, other):
            partition.memory[:] = b"\xa5" * len(partition.memory)
        where = layout.plan(1 << 20, hostile.partition_id, region_size=layout.MIN_REGION, slots=8, vectors=4)
        self.session = Session(hostile, where)
        self.region = self.session.region.view
        self.where = where
        node = next(iter(hostile.nodes.values()))
        self.values = [node.unit_address, node.windows[0].liobn, node.interrupt, hostile.tree_source, 0, 4096, 4099, 2]

    def close(self) -> None:
        self.session.close()
        self.hypervisor.close()


@given(data=st.data())
@settings(max_examples=60)
def test_any_content_of_the_region_gives_return_codes_and_touches_nobody_else(data: st.DataObject) -> None:
    """G2.2"""
    house = Hostile()
    memory_before = [bytes(partition.memory) for partition in house.partitions]
    value = st.sampled_from(house.values) | st.integers(0, U64)
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["junk", "slot", "slots"]))
        if kind == "junk":
            place = data.draw(st.integers(0, 0x2000))
            junk = data.draw(st.binary(min_size=1, max_size=300))
            house.region[place : place + len(junk)] = junk
        else:
            number = house.session.mailbox.served
            for each in range(1 if kind == "slot" else 8):
                number += 1
                slot = house.where.slots_offset + (number - 1) % 8 * SLOT_SIZE
                token = data.draw(TOKENS | st.integers(0, U64))
                words = [number, token, *(data.draw(value) for _ in range(4)), *[each] * 5]
                struct.pack_into("<11Q", house.region, slot, *words)
        before = house.session.mailbox.served
        house.session.turn(5)
        assert house.session.mailbox.served - before <= 5
    vios, hostile, other = house.partitions
    # a partition with no partner registered reaches nobody: the others' memory is untouched
    assert bytes(vios.memory) == memory_before[0]
    assert bytes(other.memory) == memory_before[2]
    assert hostile.alive
    house.close()


@pytest.mark.parametrize("token", [*sorted(TABLE), layout.G_FEATURES, layout.G_TREE, layout.G_DIRECT, 0, U64])
@pytest.mark.parametrize("register", [0, 1, 4096, 1 << 32, 1 << 63, U64])
def test_every_hcall_takes_any_registers(token: int, register: int) -> None:
    house = Hostile()
    struct.pack_into("<11Q", house.region, house.where.slots_offset, 1, token, *[register] * 9)
    assert house.session.turn(5) is False
    code: int = struct.unpack_from("<q", house.region, house.where.slots_offset + layout.CODE)[0]
    assert code != ReturnCode.H_HARDWARE
    assert house.session.mailbox.served == 1
    house.close()


def test_flooding_partition_does_not_keep_another_from_its_turn(tmp_path: Path) -> None:
    """G5.8: each has at most so many hcalls in a pass, in turn."""
    hypervisor = Hypervisor()
    flood, quiet = (hypervisor.create_partition(name, 1 << 20) for name in ("flood", "quiet"))
    with Gateway(turn=4) as gateway:
        doors = [gateway.add(partition, str(tmp_path / partition.name)) for partition in (flood, quiet)]
        for door in doors:
            door.session = Session(door.partition, door.where)
            gateway.ready[door] = None
        sessions = [door.session for door in doors if door.session is not None]
        rings = [CallRing(session.region.view, session.where, -1, -1) for session in sessions]
        for _ in range(40):
            rings[0].post(Hcall.H_XIRR, ())
        rings[1].post(Hcall.H_XIRR, ())
        gateway.poll()
        assert [session.mailbox.served for session in sessions] == [4, 1]
        gateway.poll()
        assert [session.mailbox.served for session in sessions] == [8, 1]
        for door, session in zip(doors, sessions, strict=True):
            door.session = None
            gateway.ready.pop(door, None)
            session.close()
    hypervisor.close()
