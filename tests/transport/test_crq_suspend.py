"""A suspended client goes on with nothing lost (docs/protocol.md, P1.7, P1.8; papr-vio 3.8)."""

from __future__ import annotations

import random
import time

import pytest

from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.policy import Policy
from powervio.phyp.suspension import SuspendAborted
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.client import ClientState
from powervio.vio.crq import CrqState

FORMATS = [(0, False), (0, True), (1, False)]


def messages(count: int) -> list[bytes]:
    return [b"message %d " % n * 20 for n in range(count)]


def calls(pair: PartitionPair, name: str) -> int:
    count = pair.client_adapter.ledger.snapshot()["hcalls"].get(name, 0)
    assert isinstance(count, int)
    return count


def suspend(pair: PartitionPair) -> None:
    """In turns: the server is told and gets its turn, then the client is stopped."""
    pair.hypervisor.prepare_suspend(pair.client_partition)
    pair.server_kernel.poll()
    pair.hypervisor.suspend(pair.client_partition)


@pytest.mark.parametrize(("revision", "big_endian"), FORMATS)
def test_32_made_available_while_the_server_is_quiet_complete_once_each(revision: int, big_endian: bool) -> None:
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver, revision=revision, big_endian=big_endian).start()
    sent = messages(32)
    pair.hypervisor.prepare_suspend(pair.client_partition)
    pair.server_kernel.poll()  # FF09: from here on the server begins nothing
    driver.send(*sent)
    pair.server_kernel.poll()
    assert driver.answers == []
    pair.hypervisor.suspend(pair.client_partition)
    pair.settle()
    assert (pair.server.state, pair.client.state) == ("waiting", ClientState.RUNNING)
    pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    assert (pair.client.sessions, driver.stops, pair.server.state) == (2, 1, "running")
    pair.close()


@pytest.mark.parametrize(("revision", "big_endian"), FORMATS)
@pytest.mark.parametrize("served", [0, 13, 32])
def test_32_in_flight_at_a_server_that_did_not_ask_to_be_told(served: int, revision: int, big_endian: bool) -> None:
    """FF06 comes without FF09: what the device has in hand is forgotten there and submitted again here."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, revision=revision, big_endian=big_endian).start()
    pair.server_adapter.prepare_msec = None
    device.hold = True
    sent = messages(32)
    driver.send(*sent)
    pair.settle()
    held, device.held = device.held[:served], device.held[served:]
    for request in held:
        device._echo(request)
    assert device.session is not None
    device.session.queues[0].flush()
    device.hold = False
    pair.hypervisor.suspend(pair.client_partition)
    pair.settle()
    pair.hypervisor.resume(pair.client_partition)
    pair.advance(1.0)
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    assert driver.unfinished == 0
    pair.close()


def test_queue_tces_and_place_persist_over_a_suspension() -> None:
    """P1.7: no H_FREE_CRQ, no H_REG_CRQ; the queue goes on where it was."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver).start()
    before = {name: calls(pair, name) for name in ("H_REG_CRQ", "H_FREE_CRQ")}
    queue = pair.client_adapter.queue
    place = queue.enqueue
    suspend(pair)
    pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    assert {name: calls(pair, name) for name in before} == before
    assert queue.enqueue > place
    assert calls(pair, "H_ENABLE_CRQ") == 1
    pair.close()


def test_enable_crq_that_is_busy_is_tried_again_by_timer() -> None:
    """P1.7: never blocking."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver, hypervisor=Hypervisor(Policy(enable_crq_delays=7))).start()
    suspend(pair)
    pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    assert (calls(pair, "H_ENABLE_CRQ"), pair.client.state) == (1, ClientState.WAITING)
    driver.send(b"while waiting")
    pair.advance(0.05)
    assert calls(pair, "H_ENABLE_CRQ") == 6
    pair.advance(0.05)
    assert driver.answers == [(b"while waiting", b"while waiting")]
    assert pair.client.sessions == 2
    pair.close()


@pytest.mark.parametrize(
    ("code", "after"), [(ReturnCode.H_IN_PROGRESS, 61.0), (ReturnCode.H_BUSY, 61.0), (ReturnCode.H_HARDWARE, 0.0)]
)
def test_enable_crq_that_never_succeeds_ends_in_a_full_reset(
    code: ReturnCode, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1.7: the attempts are bounded."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver).start()
    monkeypatch.setattr(pair.client_partition.port, "enable_crq", lambda unit_address: code)
    suspend(pair)
    pair.hypervisor.resume(pair.client_partition)
    driver.send(b"in the end")
    pair.advance(after)
    assert driver.answers == [(b"in the end", b"in the end")]
    assert pair.client.sessions == 2
    pair.close()


def test_client_that_is_stopped_while_it_enables_its_crq_stays_stopped() -> None:
    pair = PartitionPair(EchoDevice(), EchoDriver(), hypervisor=Hypervisor(Policy(enable_crq_delays=3))).start()
    suspend(pair)
    pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    pair.client.stop()
    pair.advance(5.0)
    assert (pair.client.state, pair.client.crq.state) == (ClientState.CLOSED, CrqState.CLOSED)
    pair.close()


def test_suspended_twice_in_a_row_goes_on_all_the_same() -> None:
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver).start()
    driver.send(*messages(5))
    for _ in range(2):
        suspend(pair)
        pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    assert sorted(driver.answers) == sorted((message, message) for message in messages(5))
    assert pair.client.running
    pair.close()


def test_server_partition_that_is_suspended_goes_on_too() -> None:
    """P1.7: an end cannot tell whose partition it was, so each enables its own."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver).start()
    pair.hypervisor.suspend(pair.server_partition)
    pair.settle()
    pair.hypervisor.resume(pair.server_partition)
    pair.settle()
    driver.send(b"hello")
    pair.settle()
    assert driver.answers == [(b"hello", b"hello")]
    pair.close()


# FF09 and FF0A


def test_server_is_ready_when_the_device_has_nothing_in_hand() -> None:
    """P1.8."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    device.hold = True
    driver.send(b"in hand")
    pair.settle()
    pair.hypervisor.prepare_suspend(pair.client_partition)
    pair.settle()
    assert not pair.hypervisor.suspensions.is_ready(pair.client_partition)
    device.release()
    assert pair.hypervisor.suspensions.is_ready(pair.client_partition)
    pair.hypervisor.suspend(pair.client_partition)
    pair.hypervisor.resume(pair.client_partition)
    pair.settle()
    assert driver.answers == [(b"in hand", b"in hand")]
    pair.close()


@pytest.mark.parametrize("channels", [False, True])
def test_aborted_suspension_lets_the_session_go_on(channels: bool) -> None:
    """P1.8: FF0A without FF06; what was made available meanwhile is found."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, channels=channels).start()
    device.hold = True
    driver.send(b"stuck")
    pair.settle()
    pair.server_adapter.prepare_msec = 20
    pair.hypervisor.prepare_suspend(pair.client_partition)
    pair.settle()
    driver.send(b"meanwhile")
    pair.settle()
    with pytest.raises(SuspendAborted):
        pair.hypervisor.suspend(pair.client_partition)
    device.hold = False
    pair.settle()
    device.release()
    pair.settle()
    assert sorted(driver.answers) == [(b"meanwhile", b"meanwhile"), (b"stuck", b"stuck")]
    assert pair.client.sessions == 1
    pair.close()


def test_ff09_that_overwrote_a_message_ends_in_a_reset_of_the_connection() -> None:
    """P1.8: a message is missing on a connection that goes on."""
    driver = EchoDriver()
    pair = PartitionPair(EchoDevice(), driver).start()
    port, address = pair.client_partition.port, pair.client.node.unit_address
    while port.send_crq(address, 0x8007 << 48 | pair.client._number << 32, 0) == ReturnCode.H_SUCCESS:
        pass
    pair.hypervisor.prepare_suspend(pair.client_partition)
    pair.settle()
    assert pair.client.sessions == 2
    driver.send(b"alive")
    pair.settle()
    assert driver.answers == [(b"alive", b"alive")]
    pair.close()


def test_terminated_at_the_server_s_request_is_a_lost_connection() -> None:
    """P1.3: FF04."""
    device = EchoDevice()
    pair = PartitionPair(device, EchoDriver()).start()
    pair.hypervisor.terminate(pair.client_partition, by=pair.server_partition)
    pair.server_kernel.poll()
    assert (pair.server.state, device.session) == ("waiting", None)
    pair.close()


@pytest.mark.parametrize("revision", [0, 1])
def test_32_in_flight_and_suspensions_in_threads_complete_once_each(revision: int) -> None:
    """The hypervisor waits for the server's thread; the client's runs here."""
    rng = random.Random(revision)
    driver = EchoDriver()
    pair = PartitionPair(
        EchoDevice(),
        driver,
        revision=revision,
        hypervisor=Hypervisor(Policy(enable_crq_delays=1)),
        clock=time.monotonic,
    )
    pair.server_kernel.start()
    pair.server_kernel.call(pair.server.start)
    pair.client.start()
    sent: list[bytes] = []
    for number in range(60):
        batch = [b"%d.%d" % (number, n) for n in range(32)]
        sent += batch
        driver.send(*batch)
        for _ in range(rng.randrange(0, 4)):
            pair.client_kernel.poll()
        pair.hypervisor.suspend(pair.client_partition)
        time.sleep(rng.random() * 0.003)
        pair.hypervisor.resume(pair.client_partition)
        end = time.monotonic() + 20
        while number % 3 == 0 and len(driver.answers) < len(sent):
            if not pair.client_kernel.poll():
                pair.client_kernel.wait(0.5)
            assert time.monotonic() < end, f"{len(driver.answers)} of {len(sent)}, client {pair.client.state}"
    end = time.monotonic() + 20
    while len(driver.answers) < len(sent) and time.monotonic() < end:
        if not pair.client_kernel.poll():
            pair.client_kernel.wait(0.5)
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    assert pair.client.sessions > 10
    pair.close()
