"""Resets, deaths and broken rings: every request completes exactly once for the driver (P1.3-P1.6, P5.9-P5.14)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from powervio.errors import LocalError
from powervio.papr.codes import ReturnCode
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.client import ClientState
from powervio.transport.crq.parts import DeviceParts
from powervio.transport.crq.protocol import Message, encode

FORMATS = [(0, False), (0, True), (1, False)]


def messages(count: int) -> list[bytes]:
    return [b"message %d " % n * 20 for n in range(count)]


def server_reset(pair: PartitionPair) -> None:
    pair.server.reset()


def client_reset(pair: PartitionPair) -> None:
    pair.client.reset()


def device_reset(pair: PartitionPair) -> None:
    pair.client.device_reset()


def server_crash_and_reboot(pair: PartitionPair) -> None:
    """FF01 without a goodbye, then another server on the same adapter."""
    pair.server.stop()
    pair.settle()
    pair.server.start()


DISASTERS = [server_reset, client_reset, device_reset, server_crash_and_reboot]


@pytest.mark.parametrize(("revision", "big_endian"), FORMATS)
@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("served", [0, 13])
def test_32_in_flight_complete_once_each(
    disaster: Callable[[PartitionPair], None], served: int, revision: int, big_endian: bool
) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, revision=revision, big_endian=big_endian).start()
    device.hold = True
    sent = messages(32)
    driver.send(*sent)
    pair.settle()
    assert len(device.held) == 32
    # some are completed and told, but not seen by the driver when the disaster comes
    held, device.held = device.held[:served], device.held[served:]
    for request in held:
        device._echo(request)
    assert device.session is not None
    device.session.queues[0].flush()
    device.hold = False
    disaster(pair)
    pair.advance(2.0)
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    assert driver.unfinished == 0
    assert pair.client.sessions == 2
    pair.close()


def test_completion_by_the_device_after_a_reset_touches_nothing() -> None:
    """P1.5: what a device still has in hand when its session ends is forgotten."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    device.hold = True
    driver.send(b"late")
    pair.settle()
    late = device.held[0]
    pair.client.reset()
    pair.settle()
    before = pair.client_partition.port.memory.tobytes()
    late.complete(4)
    late.queue.flush()
    assert pair.client_partition.port.memory.tobytes() == before
    pair.close()


def test_client_partition_terminated_leaves_the_server_waiting_for_the_next() -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    pair.hypervisor.terminate(pair.client_partition)
    pair.server_kernel.poll()
    assert pair.server.state == "waiting"
    assert device.session is None
    pair.close()


@pytest.mark.parametrize(("revision", "big_endian"), FORMATS)
def test_broken_ring_sets_needs_reset_and_the_client_recovers(revision: int, big_endian: bool) -> None:
    """P6.6, P5.14."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, revision=revision, big_endian=big_endian).start()
    queue = pair.client._queues[0]
    # a descriptor index that is out of range, published behind the driver's back
    order = "big" if big_endian else "little"
    queue.memory.available[4:6] = (4000).to_bytes(2, order)  # type: ignore[arg-type]
    queue.memory.available[2:4] = (1).to_bytes(2, order)  # type: ignore[arg-type]
    pair.client.crq.post(*encode(Message.KICK, pair.client._number, queue=0, index=1))
    pair.settle()
    assert pair.client.sessions == 2
    driver.send(b"alive")
    pair.settle()
    assert driver.answers == [(b"alive", b"alive")]
    pair.close()


def test_device_that_breaks_the_used_ring_is_left_and_tried_again() -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    device.hold = True
    driver.send(b"question")
    pair.settle()
    pair.client._queues[0].memory.used[2:4] = (500).to_bytes(2, "little")
    device.hold = False
    pair.server.crq.post(*encode(Message.USED, pair.client._number, queue=0, index=500))
    pair.settle()
    assert pair.client.state is ClientState.WAITING
    pair.advance(1.0)
    assert driver.answers == [(b"question", b"question")]
    assert pair.client.sessions == 2
    pair.close()


def test_full_crq_delays_kicks_and_loses_none() -> None:
    """P2.6: the server's partition sleeps while the client kicks more often than its queue has slots."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    kick = encode(Message.KICK, pair.client._number, queue=0, index=0)
    while pair.client_partition.port.send_crq(pair.client.node.unit_address, *kick) == ReturnCode.H_SUCCESS:
        pass
    sent = messages(40)
    for message in sent:
        driver.send(message)
    pair.advance(1.0)
    assert driver.answers == [(message, message) for message in sent]
    pair.close()


def test_request_with_an_address_that_is_not_mapped_fails_alone() -> None:
    """P6.6."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    driver.send(b"before")
    pair.settle()
    queue = pair.client._queues[0]
    queue.ring.add([(0x00F0_0000, 16), (0x00F1_0000, 16)], 1, -1)
    queue.kick()
    pair.settle()
    assert len(device.failures) == 1
    assert "H_PERMISSION" in str(device.failures[0])
    assert pair.server.state == "running"
    pair.close()


@pytest.mark.parametrize(("revision", "big_endian"), FORMATS)
def test_device_parts_let_another_server_go_on_unnoticed(revision: int, big_endian: bool) -> None:
    """The state is one JSON value; requests made available while nobody served are found by the new server."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver, revision=revision, big_endian=big_endian).start()
    before, between, after = messages(30)[:10], messages(30)[10:20], messages(30)[20:]
    driver.send(*before)
    pair.settle()
    parts = json.loads(json.dumps(pair.server.parts().to_json()))
    pair.server._lost()  # the old server's memory is gone
    driver.send(*between)
    pair.settle()
    assert len(driver.answers) == 10
    pair.server.adopt(DeviceParts.from_json(parts))
    pair.settle()
    driver.send(*after)
    pair.settle()
    assert driver.answers == [(message, message) for message in messages(30)]
    assert (driver.starts, pair.client.sessions) == (1, 1)
    pair.close()


def test_device_parts_with_a_request_in_hand_are_refused() -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    device.hold = True
    driver.send(b"held")
    pair.settle()
    with pytest.raises(LocalError, match="queue 0 has 1 requests in the device's hands"):
        pair.server.parts()
    pair.close()


def test_device_parts_of_another_version_are_refused_with_what_was_expected() -> None:
    with pytest.raises(LocalError, match="expected 'powervio-device-parts' version 1"):
        DeviceParts.from_json({"format": "other"})
