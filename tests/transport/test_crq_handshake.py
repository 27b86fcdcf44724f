"""The handshake of virtio over CRQ between both ends, revisions and byte orders (docs/protocol.md, P1, P4, P5)."""

from __future__ import annotations

import pytest

from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.client import ClientState

REVISION_0 = [
    "PROBE",
    "RDMA_HEADER",
    "ACKNOWLEDGE",
    "RDMA_CONFIG",
    "DRIVER",
    "FINALIZE_FEATURES",
    "FIND_VQS",
    "DRIVER_OK",
    "RDMA_FEATURES",
]
REVISION_1 = [
    "PROBE",
    "RDMA_HEADER",
    "ACKNOWLEDGE",
    "RDMA_CONFIG",
    "DRIVER",
    "FINALIZE_FEATURES",
    "FEATURES_OK",
    "RDMA_FEATURES",
    "FIND_VQS",
    "DRIVER_OK",
]


def test_handshake_revision_0_has_the_order_of_the_slides() -> None:
    pair = PartitionPair(EchoDevice(), EchoDriver(), revision=0).start()
    assert pair.steps == REVISION_0
    assert pair.client.revision == pair.server.revision == 0
    pair.close()


def test_handshake_revision_1_settles_features_before_queues() -> None:
    pair = PartitionPair(EchoDevice(), EchoDriver(), revision=1).start()
    assert pair.steps == REVISION_1
    assert pair.client.revision == pair.server.revision == 1
    pair.close()


@pytest.mark.parametrize(("client", "server"), [(0, 1), (1, 0), (0, 0)])
def test_handshake_of_unequal_revisions_settles_the_lower(client: int, server: int) -> None:
    """P5.1."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver, revision=client, server_revision=server).start()
    assert pair.client.revision == 0
    driver.send(b"hello")
    pair.settle()
    assert driver.answers == [(b"hello", b"hello")]
    pair.close()


@pytest.mark.parametrize("first", ["server", "client"])
def test_handshake_starts_in_either_order(first: str) -> None:
    """P1.1, P1.2."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver)
    for end in (pair.server, pair.client) if first == "server" else (pair.client, pair.server):
        end.start()
        pair.settle()
    assert driver.starts == 1
    assert pair.steps == REVISION_1
    pair.close()


def test_handshake_with_both_registered_before_either_polls_is_done_once() -> None:
    """P1.2: both C001 cross."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver)
    pair.server.start()
    pair.client.start()
    pair.settle()
    assert (driver.starts, pair.steps) == (1, REVISION_1)
    pair.close()


@pytest.mark.parametrize(
    ("revision", "big_endian"), [(0, False), (0, True), (1, False)], ids=["r0-little", "r0-big", "r1"]
)
@pytest.mark.parametrize("indirect", ["auto", "always", "never"])
@pytest.mark.parametrize("event_idx", [False, True])
def test_requests_in_every_wire_format_come_back(
    revision: int, big_endian: bool, indirect: str, event_idx: bool
) -> None:
    driver = EchoDriver(queue_count=2)
    pair = PartitionPair(
        EchoDevice(queue_count=2),
        driver,
        revision=revision,
        big_endian=big_endian,
        indirect=indirect,  # type: ignore[arg-type]
        event_idx=event_idx,
    ).start()
    messages = [bytes([n & 0xFF]) * (1 + n % 1000) for n in range(300)]
    for n, message in enumerate(messages):
        driver.send(message, queue=n % 2)
        if n % 7 == 0:
            pair.settle()
    pair.settle()
    assert sorted(driver.answers) == sorted((message, message) for message in messages)
    assert (pair.server.rejected, pair.client.rejected) == (0, 0)
    pair.close()


def test_config_change_reaches_the_driver() -> None:
    """P5.14, P5.7."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    device.counter = 99
    device.config_changed()
    pair.settle()
    assert driver.config_changes == 1
    assert driver.transport is not None
    assert driver.transport.config()[:4] == (99).to_bytes(4, "little")
    pair.close()


@pytest.mark.parametrize(("revision", "big_endian"), [(0, False), (0, True), (1, False)])
def test_config_write_reaches_the_device_in_its_byte_order(revision: int, big_endian: bool) -> None:
    """P5.8."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, revision=revision, big_endian=big_endian).start()
    assert driver.transport is not None
    driver.transport.write_config(4, (0x01020304).to_bytes(4, "big" if big_endian else "little"))
    pair.settle()
    assert device.written == 0x01020304
    pair.close()


def test_config_write_of_a_field_that_is_not_writable_is_refused_and_the_rest_goes_on() -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    assert driver.transport is not None
    driver.transport.write_config(0, b"\1\2\3\4")
    driver.send(b"still here")
    pair.settle()
    assert (device.counter, pair.server.rejected) == (7, 1)
    assert driver.answers == [(b"still here", b"still here")]
    pair.close()


def test_driver_for_another_device_type_gives_up_and_says_why() -> None:
    class OtherDriver(EchoDriver):
        device_id = 2

    pair = PartitionPair(EchoDevice(), OtherDriver()).start()
    assert pair.client.state is ClientState.FAILED
    assert "type 63; expected 2" in pair.client.failure
    pair.close()


def test_driver_that_accepts_more_than_is_offered_is_refused() -> None:
    """P4.4. The client end never does this by itself, so its choice is changed behind its back."""
    pair = PartitionPair(EchoDevice(), EchoDriver())
    original = pair.server._configuration._fetch_features

    def tampered() -> None:
        pair.client._handshake.header_memory.view[32:48] = (0xFF).to_bytes(16, "big")
        original()

    pair.server._configuration._fetch_features = tampered  # type: ignore[method-assign]
    pair.start()
    assert pair.client.state is ClientState.FAILED
    assert "FEATURES_OK with BAD_FEATURES" in pair.client.failure
    pair.close()


def test_server_that_never_answers_is_given_up_with_the_name_of_the_step() -> None:
    pair = PartitionPair(EchoDevice(), EchoDriver())
    pair.server._reply = lambda *args, **kwargs: None  # type: ignore[method-assign]
    pair.start()
    assert pair.client.state is ClientState.NEGOTIATING
    pair.advance(10.1)
    assert "did not answer PROBE within 10 s" in pair.client.failure
    pair.close()


def test_partition_without_memory_for_the_rings_gives_up_and_says_why() -> None:
    pair = PartitionPair(EchoDevice(), EchoDriver())
    taken = pair.client_kernel.pages
    taken.allocate(taken.free_bytes - 2 * 4096)
    pair.start()
    assert "after FEATURES_OK: partition memory: no run of 1 free pages" in pair.client.failure
    assert pair.client.state.value == "waiting"
    pair.advance(60)  # it tries again, in case that memory is freed, but not for ever
    assert pair.client.state.value == "failed"
    pair.close()
