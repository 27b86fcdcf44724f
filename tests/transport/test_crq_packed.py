"""Packed rings over CRQ, end to end: addresses, kicks, what is copied in which order, and what a client can break."""

from __future__ import annotations

from struct import pack_into

import pytest

from powervio.errors import LocalError
from powervio.phyp.partition import Partition
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.driver_queue import IndirectPolicy
from powervio.transport.crq.protocol import Message, QueueAddresses, Status, encode, kick_index
from powervio.virtio import features as feature
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_device import SplitDeviceRing

AVAIL, USED = 0x80, 0x8000


def packed_pair(
    *, queue_size: int = 16, in_order: bool = False, indirect: IndirectPolicy = "never", event_idx: bool = False
) -> tuple[PartitionPair, EchoDriver, EchoDevice]:
    device, driver = EchoDevice(queue_size=queue_size), EchoDriver()
    pair = PartitionPair(device, driver, packed=True, in_order=in_order, indirect=indirect, event_idx=event_idx)
    return pair.start(), driver, device


def server_calls(pair: PartitionPair) -> list[tuple[str, int, int]]:
    """From now on: what the server copies from the client and what it writes there, with address and bytes."""
    calls: list[tuple[str, int, int]] = []
    port = pair.server_partition.port
    copy, write, local = port.copy_rdma, port.write_rdma, pair.server._dma.liobn

    def copy_rdma(length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        calls.append(("store", d_ioba, length) if s_liobn == local else ("fetch", s_ioba, length))
        return copy(length, s_liobn, s_ioba, d_liobn, d_ioba)

    def write_rdma(d_liobn: int, d_ioba: int, data: bytes) -> int:
        calls.append(("write", d_ioba, len(data)))
        return write(d_liobn, d_ioba, data)

    port.copy_rdma = copy_rdma  # type: ignore[method-assign]
    port.write_rdma = write_rdma  # type: ignore[method-assign]
    return calls


def sent(partition: Partition) -> list[tuple[int, int]]:
    """From now on: the elements that it sends over its CRQ."""
    elements: list[tuple[int, int]] = []
    send = partition.port.send_crq

    def send_crq(unit_address: int, high: int, low: int) -> int:
        elements.append((high, low))
        return send(unit_address, high, low)

    partition.port.send_crq = send_crq  # type: ignore[method-assign]
    return elements


@pytest.mark.parametrize("indirect", ["never", "auto", "always"])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
def test_messages_come_back_once_over_many_rounds(indirect: IndirectPolicy, event_idx: bool, in_order: bool) -> None:
    """P6.1, P6.7, P6.8."""
    pair, driver, _ = packed_pair(indirect=indirect, event_idx=event_idx, in_order=in_order)
    queue = pair.client._queues[0]
    assert isinstance(queue.ring, PackedDriverRing)
    assert isinstance(pair.server._service.queues[0].ring, PackedDeviceRing)
    messages: list[bytes] = []
    for number in range(100):
        batch = [b"%d.%d" % (number, n) for n in range(1 + number % 11)]
        messages += batch
        driver.send(*batch)
        pair.settle()
    assert driver.answers == [(message, message) for message in messages]
    assert queue.ring.free_descriptors == 16
    assert pair.server.rejected == 0
    pair.close()


@pytest.mark.parametrize("revision", [0, 1])
def test_server_of_revision_1_offers_packed_rings_and_only_there(revision: int) -> None:
    """P4.2, P4.3: who does not ask for them has split rings; IN_ORDER is offered where the server is told to."""
    for asked in (False, True):
        driver = EchoDriver()
        pair = PartitionPair(EchoDevice(), driver, revision=revision, packed=asked, in_order=asked).start()
        offered = feature.RING_PACKED | (feature.IN_ORDER if asked else 0)
        bits = feature.RING_PACKED | feature.IN_ORDER
        assert pair.client.header.device_features & bits == (offered if revision else 0)
        assert isinstance(pair.server._service.queues[0].ring, SplitDeviceRing) is not (asked and revision == 1)
        driver.send(b"x")
        pair.settle()
        assert driver.answers == [(b"x", b"x")]
        pair.close()


def test_addresses_of_find_vqs_are_the_ring_and_the_two_event_structures() -> None:
    """P3.3."""
    pair, _, _ = packed_pair()
    entry = pair.client._queues[0].addresses()
    assert entry.available == entry.descriptors + 16 * 16
    assert (entry.descriptors % 16, entry.available % 4, entry.used % 4) == (0, 0, 0)
    assert entry.used >= entry.available + 4
    assert pair.server.session is not None
    assert pair.server.session.queues[0] == entry
    pair.close()


def test_kick_carries_position_and_round() -> None:
    """P2.3, P6.2: bytes 6-7 in virtio's format, bytes 10-11 how often the ring was gone round; USED likewise."""
    pair, driver, _ = packed_pair(queue_size=4)
    kicks = sent(pair.client_partition)
    told = sent(pair.server_partition)
    for number in range(5):
        driver.send(b"%d" % number)  # two descriptors each
        pair.settle()
    positions = [0x8002, 0x0000, 0x0002, 0x8000, 0x8002]
    assert [high & 0xFFFF for high, _ in kicks] == positions
    assert [low >> 32 & 0xFFFF for _, low in kicks] == [0, 1, 1, 2, 2]
    assert [low & ~(0xFFFF << 32) for _, low in kicks] == [0] * 5
    assert [kick_index(*kick) for kick in kicks] == [0x8002, 0x1_0000, 0x1_0002, 0x2_8000, 0x2_8002]
    assert [high & 0xFFFF for high, _ in told] == positions
    pair.close()


def test_batch_is_one_copy_of_descriptors_and_two_writes_the_first_used_last() -> None:
    """P6.7."""
    pair, driver, _ = packed_pair()
    ring = pair.client._queues[0].addresses().descriptors
    calls = server_calls(pair)
    driver.send(b"a", b"b", b"c")
    pair.settle()
    on_the_ring = [call for call in calls if ring <= call[1] < ring + 16 * 16]
    assert on_the_ring == [("fetch", ring, 6 * 16), ("store", ring + 16, 4 * 16), ("write", ring + 8, 8)]
    assert calls[-2:] == on_the_ring[1:], "after the data of all of them"
    calls.clear()
    driver.send(b"alone")
    pair.settle()
    on_the_ring = [call for call in calls if ring <= call[1] < ring + 16 * 16]
    assert on_the_ring == [("fetch", ring + 6 * 16, 2 * 16), ("write", ring + 6 * 16 + 8, 8)]
    pair.close()


def test_run_over_the_end_of_the_ring_is_copied_in_two_pieces() -> None:
    """P6.7."""
    pair, driver, _ = packed_pair(queue_size=8)
    ring = pair.client._queues[0].addresses().descriptors
    driver.send(b"a", b"b", b"c")
    pair.settle()
    calls = server_calls(pair)
    driver.send(b"d", b"e", b"f")  # slots 6 and 7, 0 and 1, 2 and 3
    pair.settle()
    assert [call for call in calls if ring <= call[1] < ring + 8 * 16] == [
        ("fetch", ring + 6 * 16, 2 * 16),
        ("fetch", ring, 4 * 16),
        ("store", ring + 7 * 16, 16),
        ("store", ring, 3 * 16),
        ("write", ring + 6 * 16 + 8, 8),
    ]
    assert len(driver.answers) == 6
    pair.close()


def test_in_order_batch_has_one_used_descriptor() -> None:
    """P6.8."""
    pair, driver, device = packed_pair(in_order=True)
    ring = pair.client._queues[0].addresses().descriptors
    device.hold = True
    driver.send(*[b"%d" % n for n in range(5)])
    pair.settle()
    device.held.reverse()
    calls = server_calls(pair)
    device.hold = False
    pair.server_kernel.call_soon(device.release)
    pair.settle()
    assert [call for call in calls if ring <= call[1] < ring + 16 * 16] == [("write", ring + 8, 8)]
    assert driver.answers == [(b"%d" % n, b"%d" % n) for n in range(5)], "in the order in which they were sent"
    pair.close()


@pytest.mark.parametrize("late", [0x0_8002, 0x1_0000, 0x4_0002, 0x7_8002, 0xFFFF_FFFF])
def test_late_or_wrong_kick_costs_nothing(late: int) -> None:
    """P6.2, P6.3: two rounds ago slot and wrap counter were the same; the round tells the difference."""
    pair, driver, device = packed_pair(queue_size=4)
    for number in range(7):
        driver.send(b"%d" % number)
        pair.settle()
    index = pair.client._queues[0].ring.published_index
    assert index == 0x3_0002
    calls = server_calls(pair)
    message = encode(Message.KICK, pair.client._number, queue=0, index=late & 0xFFFF, round=late >> 16)
    pair.client.crq.post(*message)
    pair.settle()
    assert calls == []
    driver.send(b"alive")
    pair.settle()
    assert len(driver.answers) == 8
    assert device.requests == 8
    pair.close()


def test_kick_that_is_ahead_of_the_ring_is_a_hint() -> None:
    """P6.3: what the copy does not show is not there; the entries that are there come with the next kick."""
    pair, driver, _ = packed_pair()
    pair.client.crq.post(*encode(Message.KICK, pair.client._number, queue=0, index=0x8004))
    pair.settle()
    assert pair.server.state == "running"
    driver.send(b"alive")
    pair.settle()
    assert driver.answers == [(b"alive", b"alive")]
    pair.close()


@pytest.mark.parametrize(
    "flags", [AVAIL | 1, AVAIL | 4, AVAIL | 4 | 1], ids=["endless chain", "table of a length", "table in a list"]
)
def test_broken_ring_sets_needs_reset_and_the_client_recovers(flags: int) -> None:
    """P6.6, P5.14."""
    pair, driver, _ = packed_pair(indirect="always")
    ring = pair.client._queues[0].memory.descriptors
    for slot in range(16):
        pack_into("<QIHH", ring, 16 * slot, 0, 17, slot, flags)
    pair.client.crq.post(*encode(Message.KICK, pair.client._number, queue=0, index=0x8001))
    pair.settle()
    assert pair.client.sessions == 2
    driver.send(b"alive")
    pair.settle()
    assert driver.answers == [(b"alive", b"alive")]
    pair.close()


def test_device_that_lies_in_the_ring_is_left_and_tried_again() -> None:
    pair, driver, device = packed_pair()
    device.hold = True
    driver.send(b"question")
    pair.settle()
    # a used descriptor for a buffer that was never lent
    pair.client._queues[0].memory.descriptors[8:16] = bytes(4) + (3).to_bytes(2, "little") + b"\x80\x80"
    device.hold = False
    pair.server.crq.post(*encode(Message.USED, pair.client._number, queue=0, index=0x8002))
    pair.settle()
    pair.advance(1.0)
    assert driver.answers == [(b"question", b"question")]
    assert pair.client.sessions == 2
    pair.close()


def test_queue_reset_begins_a_new_ring_at_its_beginning() -> None:
    """P5.11, P6.2: positions and rounds begin anew."""
    pair, driver, device = packed_pair(queue_size=4)
    for number in range(3):
        driver.send(b"%d" % number)
        pair.settle()
    device.hold = True
    driver.send(b"in hand")
    pair.settle()
    driver.reset_queue()
    device.hold = False
    pair.settle()
    assert driver.resets == 1
    assert pair.client._queues[0].ring.published_index == 0x8002
    assert driver.answers[-1] == (b"in hand", b"in hand")
    assert len(driver.answers) == 4
    pair.close()


def test_another_server_goes_on_in_the_middle_of_a_round() -> None:
    """P5.12: what `parts` hands over is where the ring is, rounds and all."""
    pair, driver, device = packed_pair(queue_size=4)
    for number in range(3):
        driver.send(b"%d" % number)
        pair.settle()
    device.hold = True
    driver.send(b"in hand")
    pair.settle()
    with pytest.raises(LocalError, match="in the device's hands"):
        pair.server.parts()
    device.hold = False
    device.release()
    parts = pair.server.parts()
    assert [(queue.last_available, queue.used_index) for queue in parts.queues] == [(0x2_8000, 0x8000)]
    pair.server.adopt(type(parts).from_json(parts.to_json()))
    pair.settle()
    calls = server_calls(pair)
    driver.send(b"after")
    pair.settle()
    assert [what for what, _, _ in calls].count("fetch") == 1, "the kick is understood at once"
    assert driver.answers[-1] == (b"after", b"after")
    assert len(driver.answers) == 5
    assert pair.client.sessions == 1
    pair.close()


@pytest.mark.parametrize(
    ("size", "offsets", "status"),
    [
        (1, (0, 0, 0), Status.OK),
        (13, (0, 4, 8), Status.OK),
        (0, (0, 0, 0), Status.BAD_QUEUE),
        (17, (0, 0, 0), Status.BAD_QUEUE),
        (13, (8, 0, 0), Status.BAD_QUEUE),
        (13, (0, 2, 0), Status.BAD_QUEUE),
        (13, (0, 0, 2), Status.BAD_QUEUE),
    ],
)
def test_find_vqs_takes_any_size_and_virtios_alignment(
    size: int, offsets: tuple[int, int, int], status: Status
) -> None:
    """P3.3, P5.5."""
    pair, _, _ = packed_pair()
    replies: list[int] = []
    pair.client._answered = lambda kind, reply: replies.append(reply["status"])  # type: ignore[method-assign]
    area = pair.client._dma.allocate(8192)
    address = area.ioba
    pair.client._request(Message.QUEUE_RESET, queue=0)
    places = (address + 1024 + offsets[0], address + 2048 + offsets[1], address + 3072 + offsets[2])
    area.view[:32] = QueueAddresses(0, size, *places).pack()
    pair.client._request(Message.FIND_VQS, count=1, length=32, address=address)
    pair.settle()
    assert replies == [Status.OK, status]
    if status is Status.OK:
        assert pair.server._service.queues[0].ring.size == size
    pair.close()
