"""QUEUE_RESET, SUSPEND and RESUME as the client end sends them (P5.11, P5.12): each request completes exactly once,
whatever ends in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.transport.test_crq_reset import DISASTERS, messages, server_crash_and_reboot

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.drivers.block_request import BlockError
from powervio.errors import LocalError, PowervioError
from powervio.papr.codes import ReturnCode
from powervio.storage.image import open_image
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.client import ClientState
from powervio.transport.crq.protocol import Message, encode
from powervio.vio.outbox import Notification, Notifier
from powervio.vio.subcrq import SubCrqEnd
from powervio.virtio import block as blk
from powervio.virtio import features as feature
from powervio.virtio.queue import Request

Make = Callable[..., PartitionPair]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[PartitionPair] = []

    def start(device: EchoDevice, driver: EchoDriver, **options: object) -> PartitionPair:
        made.append(PartitionPair(device, driver, **options).start())  # type: ignore[arg-type]
        return made[-1]

    yield start
    for pair in made:
        pair.close()


def note_messages(pair: PartitionPair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what the client sends over the CRQ from here on."""
    log: list[str] = []
    send = pair.client_partition.port.send_crq

    def noting_send(unit_address: int, high: int, low: int) -> int:
        log.append(Message(high >> 48 & 0xFF).name)
        return send(unit_address, high, low)

    monkeypatch.setattr(pair.client_partition.port, "send_crq", noting_send)
    return log


def once_each(driver: EchoDriver, sent: list[bytes]) -> bool:
    return sorted(driver.answers) == sorted((message, message) for message in sent) and not driver.unfinished


def complete(device: EchoDevice, count: int, queue: int = 0) -> None:
    """The device completes some of what it holds, and tells."""
    done, device.held = device.held[:count], device.held[count:]
    for request in done:
        device._echo(request)
    assert device.session is not None
    device.session.queues[queue].flush()


# Resets of one queue


@pytest.mark.parametrize("completed", [0, 13, 32])
@pytest.mark.parametrize("channels", [False, True])
def test_reset_of_a_queue_with_32_in_flight_completes_each_once(make: Make, completed: int, channels: bool) -> None:
    """P5.11, P5.16: what was completed and not seen counts; the rest comes back and is served by the new ring."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver, channels=channels)
    device.hold = True
    sent = messages(32)
    driver.send(*sent)
    pair.settle()
    assert len(device.held) == 32
    complete(device, completed)
    driver.reset_queue(0)
    device.hold = False
    pair.settle()
    assert once_each(driver, sent)
    assert (driver.resets, driver.stops, pair.client.sessions) == (1, 0, 1)
    assert device.requests == 32
    assert pair.steps.count("FIND_VQS") == 2


def test_reset_of_a_queue_leaves_the_other_alone(make: Make) -> None:
    """P5.11: the other queue's request stays with the device, and completes there."""
    device, driver = EchoDevice(queue_count=2), EchoDriver(queue_count=2)
    pair = make(device, driver)
    device.hold = True
    driver.send(b"zero", queue=0)
    driver.send(b"one", queue=1)
    pair.settle()
    other = next(request for request in device.held if request.queue_index == 1)
    driver.reset_queue(0)
    pair.settle()
    assert other in device.held
    assert [request.queue_index for request in device.held] == [1, 0]
    device.release(0)
    complete(device, 0, queue=1)
    pair.settle()
    assert sorted(driver.answers) == [(b"one", b"one"), (b"zero", b"zero")]


def test_ring_that_was_set_up_again_is_elsewhere_and_carries_many_requests(make: Make) -> None:
    """Every reset takes another ring; indices begin at 0, mappings and memory do not grow."""
    device, driver = EchoDevice(queue_size=8), EchoDriver()
    pair = make(device, driver)
    places: list[int] = []
    sent: list[bytes] = []
    for turn in range(20):
        more = [b"%d of %d" % (n, turn) for n in range(11)]
        sent += more
        driver.send(*more)
        pair.settle()
        places.append(pair.client._queues[0].addresses().descriptors)
        if turn == 2:
            free = (pair.client_kernel.pages.free_bytes, pair.client._dma.free_pages)
        driver.reset_queue(0)
        pair.settle()
    assert once_each(driver, sent)
    assert (driver.resets, pair.client.sessions) == (20, 1)
    assert all(one != next_one for one, next_one in pairwise(places))
    assert (pair.client_kernel.pages.free_bytes, pair.client._dma.free_pages) == free


def test_what_is_sent_while_a_queue_is_reset_waits_for_the_new_ring(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kick goes out between QUEUE_RESET and the reply to FIND_VQS; then one tells of everything."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"before")
    pair.settle()
    device.hold = False
    log = note_messages(pair, monkeypatch)
    driver.reset_queue(0)
    driver.send(b"meanwhile 1")
    pair.server_kernel.poll()
    driver.send(b"meanwhile 2")
    pair.client_kernel.poll()
    driver.send(b"meanwhile 3")
    pair.settle()
    assert log == ["QUEUE_RESET", "FIND_VQS", "KICK"]
    assert once_each(driver, [b"before", b"meanwhile 1", b"meanwhile 2", b"meanwhile 3"])
    assert pair.server.rejected == 0


def test_resets_of_several_queues_go_one_after_the_other(make: Make) -> None:
    device, driver = EchoDevice(queue_count=3), EchoDriver(queue_count=3)
    pair = make(device, driver)
    device.hold = True
    sent = messages(9)
    for number, message in enumerate(sent):
        driver.send(message, queue=number % 3)
    pair.settle()
    device.hold = False
    for queue in (2, 0, 1, 0):
        driver.reset_queue(queue)
    pair.settle()
    assert once_each(driver, sent)
    assert (driver.resets, pair.client.sessions) == (4, 1)
    assert pair.client.rejected == 0


@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("progress", [0, 1, 2, 3], ids=lambda turns: f"{turns} turns")
def test_session_that_ends_while_a_queue_is_reset_loses_nothing(
    make: Make, disaster: Callable[[PartitionPair], None], progress: int
) -> None:
    """P1.6: wherever the reset was, each request completes once, in the next session at the latest."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    sent = messages(32)
    driver.send(*sent)
    pair.settle()
    complete(device, 5)
    driver.reset_queue(0)
    for turn in range(progress):
        (pair.client_kernel if turn % 2 else pair.server_kernel).poll()
    device.hold = False
    disaster(pair)
    pair.advance(2.0)
    assert once_each(driver, sent)
    assert (pair.client.sessions, driver.stops) == (2, 1)
    driver.reset_queue(0)
    pair.settle()
    driver.send(b"after")
    pair.settle()
    assert driver.answers[-1] == (b"after", b"after")


def test_queue_reset_that_was_not_negotiated_is_the_callers_mistake(make: Make) -> None:
    driver = EchoDriver()
    make(EchoDevice(), driver, revision=0)
    with pytest.raises(LocalError, match="not negotiated"):
        driver.reset_queue(0)


def test_queue_of_an_ended_session_cannot_be_reset(make: Make) -> None:
    driver = EchoDriver()
    pair = make(EchoDevice(), driver)
    transport = driver.transport
    assert transport is not None
    queue = transport.queues[0]
    pair.client.reset()
    pair.settle()
    with pytest.raises(LocalError, match="no session"):
        transport.reset_queue(queue, lambda tokens: None)
    assert driver.transport is not None
    with pytest.raises(LocalError, match="another session"):
        driver.transport.reset_queue(queue, lambda tokens: None)


class HoldingDisk(BlockDevice):
    """Keeps requests of some queues."""

    def __init__(self, image: object, queues: int) -> None:
        super().__init__(image, BlockOptions(queues=queues))  # type: ignore[arg-type]
        self.hold: set[int] = set()
        self.held: list[Request] = []

    def handle(self, request: Request) -> None:
        if request.queue_index in self.hold:
            self.held.append(request)
        else:
            super().handle(request)


@pytest.mark.parametrize("queues", [1, 2])
def test_disk_request_that_the_device_holds_is_cancelled_by_a_reset_of_its_queue(tmp_path: Path, queues: int) -> None:
    """The session goes on; the other requests of the queue are submitted again, in their order."""
    with open_image(tmp_path / "disk.img", create_size=1 << 20) as image:
        device, driver = HoldingDisk(image, queues), BlockDriver()
        pair = PartitionPair(device, driver).start()
        device.hold = {0}
        done: list[BlockRequest] = []
        requests = []
        for index in range(6):
            buffer = pair.client.allocate(4096, mapped=False)
            buffer.view[:] = bytes([index + 1]) * 4096
            requests.append(BlockRequest(blk.T_OUT, index * 4096, 4096, ((buffer, 0, 4096),), done.append))
        driver.submit_many(requests)
        driver.kick()
        pair.settle()
        assert len(device.held) == 6 // queues
        stuck = requests[0]
        driver.withdraw(stuck)
        assert not stuck.done
        device.hold = set()
        driver.reset_queue(0)
        pair.settle()
        assert isinstance(stuck.error, BlockError)
        assert [request.error for request in requests[1:]] == [None] * 5
        assert len(done) == 6
        assert (driver.resubmitted, driver.in_flight, driver.pending) == (6 // queues - 1, 0, 0)
        assert [ring.load for ring in driver._rings] == [0] * queues
        assert pair.client.sessions == 1
        back = bytearray(6 * 4096)
        image.read_into(0, memoryview(back))
        assert bytes(back) == b"".join(bytes([index + 1 if index else 0]) * 4096 for index in range(6))
        pair.close()


def test_disk_without_a_session_resets_no_queue() -> None:
    with pytest.raises(LocalError, match="no session"):
        BlockDriver().reset_queue(0)


# Suspending the device


class Outcome:
    """What became of `suspend`."""

    def __init__(self) -> None:
        self.calls: list[PowervioError | None] = []

    def __call__(self, error: PowervioError | None) -> None:
        self.calls.append(error)


@pytest.mark.parametrize("channels", [False, True])
def test_suspended_device_is_quiet_until_resume(make: Make, channels: bool) -> None:
    """P5.12: what was in flight is finished first; what comes meanwhile is served after, and costs nothing before."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver, channels=channels)
    device.hold = True
    before = messages(8)
    driver.send(*before)
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    pair.settle()
    assert (outcome.calls, pair.client.state) == ([], ClientState.RUNNING)
    device.hold = False
    pair.server_kernel.call(device.release)
    pair.settle()
    assert (outcome.calls, pair.client.state) == ([None], ClientState.SUSPENDED)
    assert once_each(driver, before)
    spent = pair.server_adapter.ledger.snapshot()
    after = messages(20)[8:]
    driver.send(*after)
    pair.settle()
    assert not (pair.server_adapter.ledger.snapshot() - spent)["hcalls"]
    assert driver.unfinished == 12
    pair.client.resume()
    pair.settle()
    assert pair.client.state is ClientState.RUNNING
    assert once_each(driver, before + after)
    assert (driver.stops, pair.client.sessions) == (0, 1)


def carrier(channels: Channels) -> SubCrqEnd:
    """What carries the first queue."""
    end = channels.carrier(0)
    assert end is not None
    return end


class Late(Notifier):
    """Where notifications stay."""

    def __init__(self) -> None:
        self.signals: list[Notification] = []

    def signal(self, notification: Notification) -> None:
        self.signals.append(notification)


def test_kick_that_comes_late_through_a_sub_crq_is_found_by_resume(make: Make) -> None:
    """P5.12, P5.16: SUSPEND overtakes a kick; its buffer waits in the ring and RESUME looks at it."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver, channels=True)
    channels = pair.client._channels
    end, generation = channels.notifier(0), channels.generation(0)
    queue = pair.client._handshake.queues[0]
    kept = Late()
    queue.use(kept, generation)
    driver.send(b"overtaken")
    outcome = Outcome()
    pair.client.suspend(outcome)
    pair.settle()
    assert outcome.calls == [None]
    queue.use(end, generation)
    for notification in kept.signals:
        end.signal(notification)
    pair.settle()
    assert driver.answers == []
    pair.client.resume()
    pair.settle()
    assert driver.answers == [(b"overtaken", b"overtaken")]


@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("progress", [0, 1, 2, 9], ids=lambda turns: f"{turns} turns")
def test_server_that_takes_over_is_suspended_before_it_gets_a_request(
    make: Make, disaster: Callable[[PartitionPair], None], progress: int
) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    sent = messages(10)
    driver.send(*sent)
    pair.settle()
    complete(device, 3)
    outcome = Outcome()
    pair.client.suspend(outcome)
    for turn in range(progress):
        (pair.client_kernel if turn % 2 else pair.server_kernel).poll()
    device.hold = False
    served = device.requests
    disaster(pair)
    pair.advance(2.0)
    assert (outcome.calls, pair.client.state) == ([None], ClientState.SUSPENDED)
    assert pair.client.sessions == 2
    assert (device.requests, driver.unfinished) == (served, 7)
    pair.client.resume()
    pair.settle()
    assert once_each(driver, sent)
    assert pair.client.state is ClientState.RUNNING


def test_server_that_takes_over_and_cannot_suspend_gets_nothing_until_resume(make: Make) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    pair.client.suspend(Outcome())
    pair.settle()
    pair.server._configuration._highest_revision = 0
    server_crash_and_reboot(pair)
    pair.settle()
    assert (pair.client.revision, pair.client.state) == (0, ClientState.SUSPENDED)
    driver.send(b"later")
    pair.settle()
    assert (device.requests, pair.client.rejected) == (0, 0)
    pair.client.resume()
    pair.settle()
    assert driver.answers == [(b"later", b"later")]
    assert pair.server.rejected == 0


def test_config_messages_wait_for_the_reply_to_suspend(make: Make) -> None:
    """P5.12: another message before the reply would make the server give SUSPEND up."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"held")
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    assert driver.transport is not None
    driver.transport.write_config(4, (77).to_bytes(4, "little"))
    device.counter = 99
    device.config_changed()
    device.config_changed()
    pair.settle()
    assert (outcome.calls, device.written, driver.config_changes) == ([], 0, 0)
    device.hold = False
    pair.server_kernel.call(device.release)
    pair.settle()
    assert (outcome.calls, device.written, driver.config_changes) == ([None], 77, 1)
    assert driver.transport.config() == (99).to_bytes(4, "little") + (77).to_bytes(4, "little")
    assert (pair.client.state, pair.client.rejected, pair.server.rejected) == (ClientState.SUSPENDED, 0, 0)


def test_device_that_is_reset_while_it_is_to_be_suspended_is_not_asked_for_its_old_config(make: Make) -> None:
    """P5.12: RESET does not wait for SUSPEND, and what waited is not sent into the reset device."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"held")
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    device.counter = 99
    device.config_changed()
    pair.settle()
    device.hold = False
    pair.client.device_reset()
    pair.settle()
    assert (outcome.calls, pair.client.state, pair.client.sessions) == ([None], ClientState.SUSPENDED, 2)
    assert driver.transport is not None
    assert driver.transport.config()[:4] == (99).to_bytes(4, "little")
    pair.client.resume()
    pair.settle()
    assert driver.answers == [(b"held", b"held")]
    assert pair.client.failure == ""
    assert (pair.client.rejected, pair.server.rejected) == (0, 1)  # the SUSPEND that was given up


def test_resume_while_the_device_is_reset_kicks_nothing_of_the_old_life(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = EchoDriver()
    pair = make(EchoDevice(), driver)
    pair.client.suspend(Outcome())
    pair.settle()
    driver.send(b"meanwhile")
    log = note_messages(pair, monkeypatch)
    pair.client.device_reset()
    pair.client.resume()
    pair.settle()
    assert log == ["RESET", "ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "FIND_VQS", "DRIVER_OK", "KICK"]
    assert driver.answers == [(b"meanwhile", b"meanwhile")]
    assert pair.server.rejected == 0


def test_resume_before_the_device_is_quiet_lets_it_go_on(make: Make) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"held")
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    pair.settle()
    pair.client.resume()
    driver.send(b"more")
    device.hold = False
    pair.server_kernel.call(device.release)
    pair.settle()
    assert pair.client.state is ClientState.RUNNING
    assert once_each(driver, [b"held", b"more"])
    assert [type(error) for error in outcome.calls] == [LocalError]
    assert (pair.client.rejected, pair.server.rejected) == (0, 0)


def test_suspend_waits_for_a_queue_reset_and_a_queue_reset_for_resume(make: Make) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    sent = messages(4)
    driver.send(*sent)
    pair.settle()
    device.hold = False
    outcome = Outcome()
    driver.reset_queue(0)
    pair.client.suspend(outcome)
    driver.reset_queue(0)
    pair.settle()
    assert (driver.resets, outcome.calls, device.requests) == (1, [None], 0)
    pair.client.resume()
    pair.settle()
    assert driver.resets == 2
    assert once_each(driver, sent)


def test_suspend_that_never_ends_costs_the_session_and_the_next_one_is_suspended(make: Make) -> None:
    """Every wait has a limit: a device that keeps a request does not keep the partition."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"kept")
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    pair.advance(9.0)
    assert (outcome.calls, pair.client.sessions) == ([], 1)
    device.hold = False
    pair.advance(3.0)
    assert "did not answer SUSPEND within 10 s" in pair.client.failure
    assert (outcome.calls, pair.client.sessions, pair.client.state) == ([None], 2, ClientState.SUSPENDED)
    pair.client.resume()
    pair.settle()
    assert driver.answers == [(b"kept", b"kept")]


class BreaksAtSuspend(EchoDevice):
    def suspend(self) -> None:
        raise OSError("nothing to write to")


def test_device_that_breaks_while_it_is_suspended_is_reset_and_goes_on(make: Make) -> None:
    """NEEDS_RESET during SUSPEND (P5.14): the session's device is reset, and no request is lost."""
    device, driver = BreaksAtSuspend(), EchoDriver()
    pair = make(device, driver)
    outcome = Outcome()
    pair.client.suspend(outcome)
    driver.send(b"meanwhile")
    pair.advance(2.0)
    assert [type(error).__name__ for error in outcome.calls] == ["RemoteError"]
    assert "SUSPEND with DEVICE_ERROR" in str(outcome.calls[0])
    assert pair.server.rejected == 2  # SUSPEND, and the ring of a device that failed; no kick
    assert pair.client.sessions == 2
    assert pair.client.state is ClientState.RUNNING
    assert driver.answers == [(b"meanwhile", b"meanwhile")]


def test_suspend_that_cannot_be_is_the_callers_mistake(make: Make) -> None:
    pair = make(EchoDevice(), EchoDriver(), revision=0)
    with pytest.raises(LocalError, match="not negotiated"):
        pair.client.suspend(Outcome())
    pair = make(EchoDevice(), EchoDriver())
    pair.client.suspend(Outcome())
    with pytest.raises(LocalError, match="already"):
        pair.client.suspend(Outcome())
    pair.client.resume()
    pair.client.resume()
    pair.settle()
    pair.client.stop()
    with pytest.raises(LocalError, match="no session"):
        pair.client.suspend(Outcome())


def test_stop_ends_a_suspend_that_waits(make: Make) -> None:
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    device.hold = True
    driver.send(b"kept")
    pair.settle()
    outcome = Outcome()
    pair.client.suspend(outcome)
    pair.settle()
    pair.client.stop()
    assert [str(error) for error in outcome.calls] == ["the adapter was stopped"]
    device.hold = False
    pair.client.start()
    pair.settle()
    assert pair.client.state is ClientState.RUNNING
    assert driver.answers == [(b"kept", b"kept")]


def test_features_are_negotiated_in_revision_1_and_do_not_exist_in_revision_0(make: Make) -> None:
    """P4.2, P4.3."""
    both = feature.RING_RESET | feature.SUSPEND
    for revision, expected in ((1, both), (0, 0)):
        driver = EchoDriver()
        make(EchoDevice(), driver, revision=revision)
        assert driver.transport is not None
        assert driver.transport.features & both == expected


def test_kick_that_is_kept_back_when_its_queue_is_reset_comes_before_the_reset(make: Make) -> None:
    """P2.6: the CRQ is full when the driver kicks and resets; what is kept back is sent in order."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver)
    message = encode(Message.KICK, pair.client._number, queue=9)
    while pair.client_partition.port.send_crq(pair.client.node.unit_address, *message) == ReturnCode.H_SUCCESS:
        pass
    driver.send(b"kept back")
    driver.reset_queue(0)
    pair.advance(1.0)
    assert driver.answers == [(b"kept back", b"kept back")]
    assert (driver.resets, device.requests, pair.client.sessions) == (1, 1, 1)


def test_kick_that_a_sub_crq_has_no_room_for_is_not_waited_for_by_the_new_ring(make: Make) -> None:
    """P2.6, P5.17: it is forgotten with its ring; the new ring's first kick goes out at once, without a timer."""
    device, driver = EchoDevice(), EchoDriver()
    pair = make(device, driver, channels=True)
    cookie = carrier(pair.server._channels).cookie
    element = encode(Message.KICK, 0, queue=9)
    port, unit = pair.client_partition.port, pair.client.node.unit_address
    while port.send_sub_crq(unit, cookie, *element, 0, 0) == ReturnCode.H_SUCCESS:
        pass
    driver.send(b"kept back")
    driver.reset_queue(0)
    pair.settle()  # no time passes
    assert driver.answers == [(b"kept back", b"kept back")]
    assert (driver.resets, device.requests) == (1, 1)
