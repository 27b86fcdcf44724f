"""Queues on Sub-CRQs: cookies, fallbacks, and what comes late (docs/protocol.md, P2.7, P3.5, P5.13, P5.15-P5.18)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transport.test_crq_messages import Prober, golden

from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.policy import Policy
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.parts import DeviceParts
from powervio.transport.crq.protocol import (
    CARRIED,
    ChannelEntry,
    Message,
    QueueAddresses,
    Status,
    encode,
    sub_crq_element,
)
from powervio.vio.kernel import PartitionKernel
from powervio.vio.outbox import Notification, Notifier
from powervio.vio.subcrq import SubCrqEnd
from powervio.virtio.queue import Request

QUEUES = 4


def pair_of(queues: int = QUEUES, **options: object) -> PartitionPair:
    return PartitionPair(
        EchoDevice(queue_count=queues),
        EchoDriver(queue_count=queues),
        **options,  # type: ignore[arg-type]
    )


def send_everywhere(pair: PartitionPair, count: int = 8, queues: int = QUEUES) -> list[bytes]:
    driver = pair.driver
    assert isinstance(driver, EchoDriver)
    sent = []
    for queue in range(queues):
        messages = [b"%d.%d" % (queue, n) for n in range(count)]
        driver.send(*messages, queue=queue)
        sent += messages
    return sent


def answers(pair: PartitionPair) -> list[tuple[bytes, bytes]]:
    assert isinstance(pair.driver, EchoDriver)
    return sorted(pair.driver.answers)


def echoed(sent: list[bytes]) -> list[tuple[bytes, bytes]]:
    return sorted((message, message) for message in sent)


def crq_sends(pair: PartitionPair) -> int:
    ends = (pair.client_adapter, pair.server_adapter)
    return sum(end.ledger.snapshot()["hcalls"].get("H_SEND_CRQ", 0) for end in ends)


# the wire


def test_channel_entry_has_its_golden_bytes() -> None:
    """P3.5."""
    entry = ChannelEntry(3, 9, CARRIED, 0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00)
    assert entry.pack() == golden("channel-entry", entry.pack())
    assert ChannelEntry.unpack(entry.pack()) == entry


@pytest.mark.parametrize("name", ["sub-crq-kick", "sub-crq-used"])
def test_element_has_its_golden_bytes(name: str) -> None:
    """P2.7: the CRQ message's 16 bytes with the generation, then zeroes."""
    kind = Message.KICK if name == "sub-crq-kick" else Message.USED
    element = sub_crq_element(*encode(kind, 7, queue=3, index=0xFFFE, generation=9))
    assert element == golden(name, element)


# who uses them


@pytest.mark.parametrize(
    ("queues", "channels", "carried"), [(1, None, 0), (1, True, 1), (4, None, 4), (4, False, 0), (4, True, 4)]
)
def test_channels_are_used_for_more_than_one_queue_or_as_asked(
    queues: int, channels: bool | None, carried: int
) -> None:
    """P5.13."""
    pair = pair_of(queues, channels=channels).start()
    before = crq_sends(pair)
    sent = send_everywhere(pair, queues=queues)
    pair.settle()
    assert answers(pair) == echoed(sent)
    assert (pair.client.channels, pair.server.channels) == (carried, carried)
    assert (crq_sends(pair) == before) == bool(carried)
    assert ("CHANNELS" in pair.steps) == bool(carried)
    pair.close()


def test_revision_0_has_no_channels() -> None:
    pair = pair_of(revision=0, channels=True).start()
    sent = send_everywhere(pair)
    pair.settle()
    assert (answers(pair), pair.client.channels) == (echoed(sent), 0)
    pair.close()


def test_server_without_channels_answers_unsupported_and_queues_stay_on_the_crq() -> None:
    """P5.15."""
    pair = pair_of(server_channels=False).start()
    sent = send_everywhere(pair)
    pair.settle()
    assert answers(pair) == echoed(sent)
    assert (pair.client.channels, len(pair.client_adapter.sub_crqs), pair.client.sessions) == (0, 0, 1)
    pair.close()


def test_platform_without_sub_crqs_leaves_queues_on_the_crq() -> None:
    """P5.15: H_FUNCTION."""
    pair = pair_of(hypervisor=Hypervisor(Policy(max_sub_crqs=0))).start()
    sent = send_everywhere(pair)
    pair.settle()
    assert (answers(pair), pair.client.channels) == (echoed(sent), 0)
    assert "CHANNELS" not in pair.steps
    pair.close()


def test_queues_for_which_there_is_no_sub_crq_left_stay_on_the_crq() -> None:
    """P5.15."""
    pair = pair_of(hypervisor=Hypervisor(Policy(max_sub_crqs=2))).start()
    sent = send_everywhere(pair)
    pair.settle()
    assert (answers(pair), pair.client.channels) == (echoed(sent), 2)
    pair.close()


def test_server_with_fewer_sub_crqs_leaves_the_rest_on_the_crq() -> None:
    pair = pair_of()
    kept = [pair.server_adapter.sub_crqs.unused.pop() for _ in range(13)]
    pair.start()
    sent = send_everywhere(pair)
    pair.settle()
    assert (len(kept), pair.client.channels, len(pair.client_adapter.sub_crqs)) == (13, 3, 3)
    assert answers(pair) == echoed(sent)
    pair.close()


# what the server checks


def ready(prober: Prober, *queues: int) -> None:
    prober.until_features()
    entries = [QueueAddresses(q, 16, 0x10000 * (q + 1), 0x10100 + 0x10000 * q, 0x10200 + 0x10000 * q) for q in queues]
    assert prober.find_vqs(*entries) is Status.OK


def channels(prober: Prober, *entries: ChannelEntry, **values: int) -> Status:
    area = prober.client._handshake.header_memory
    block = b"".join(entry.pack() for entry in entries)
    area.view[128 : 128 + len(block)] = block
    values = {"count": len(entries), "length": len(block), "address": area.ioba + 128, **values}
    return prober.status(Message.CHANNELS, **values)


def test_channels_writes_the_server_s_cookies_into_the_block() -> None:
    """P5.13: queues that share the client's cookie share the server's."""
    prober = Prober()
    ready(prober, 0, 1)
    assert channels(prober, ChannelEntry(0, 1, 0, 77), ChannelEntry(1, 1, 0, 77)) is Status.OK
    view = prober.client._handshake.header_memory.view[128:192]
    found = [ChannelEntry.unpack(bytes(view[at : at + 32])) for at in (0, 32)]
    cookie = next(iter(prober.pair.server_adapter.sub_crqs.cookies))
    assert found == [ChannelEntry(0, 1, CARRIED, 77, cookie), ChannelEntry(1, 1, CARRIED, 77, cookie)]
    assert prober.replies[0]["value"] == 2


@pytest.mark.parametrize(
    ("entries", "values", "expected"),
    [
        ([ChannelEntry(0, 1, 0, 7)], {"length": 31}, Status.BAD_LENGTH),
        ([ChannelEntry(0, 1, 0, 7)], {"count": 0}, Status.BAD_LENGTH),
        ([ChannelEntry(0, 1, 0, 7)] * 3, {}, Status.BAD_LENGTH),
        ([ChannelEntry(0, 1, 0, 7)] * 2, {}, Status.BAD_QUEUE),
        ([ChannelEntry(1, 1, 0, 7)], {}, Status.BAD_QUEUE),
        ([ChannelEntry(0, 1, 0, 7)], {"address": 0x0F00_0000}, Status.BAD_ADDRESS),
    ],
)
def test_channels_that_are_wrong_are_refused_and_leave_no_sub_crq(
    entries: list[ChannelEntry], values: dict[str, int], expected: Status
) -> None:
    """P2.5, P5.13."""
    prober = Prober()
    ready(prober, 0)
    assert channels(prober, *entries, **values) is expected
    assert len(prober.pair.server_adapter.sub_crqs) == 0


def test_channels_at_another_time_is_bad_state() -> None:
    """P5.13: between FIND_VQS and DRIVER_OK, once."""
    prober = Prober()
    ready(prober, 0)
    assert channels(prober, ChannelEntry(0, 1, 0, 7)) is Status.OK
    assert channels(prober, ChannelEntry(0, 2, 0, 8)) is Status.BAD_STATE
    assert prober.status(Message.DRIVER_OK) is Status.OK
    assert channels(prober, ChannelEntry(0, 2, 0, 8)) is Status.BAD_STATE
    assert prober.status(Message.RESET) is Status.OK
    assert len(prober.pair.server_adapter.sub_crqs) == 0


def test_find_vqs_again_makes_the_channels_void() -> None:
    """P5.13."""
    prober = Prober()
    ready(prober, 0)
    assert channels(prober, ChannelEntry(0, 1, 0, 7)) is Status.OK
    assert prober.find_vqs(QueueAddresses(0, 16, 0x10000, 0x10100, 0x10200)) is Status.OK
    assert len(prober.pair.server_adapter.sub_crqs) == 0
    assert channels(prober, ChannelEntry(0, 2, 0, 8)) is Status.OK


# what comes late


def carrier(channels: Channels, queue: int = 0) -> SubCrqEnd:
    """What carries a queue."""
    end = channels.carrier(queue)
    assert end is not None
    return end


def server_channel(pair: PartitionPair, queue: int = 0) -> int:
    return int(carrier(pair.server._channels, queue).cookie)


def kick(pair: PartitionPair, cookie: int, **values: int) -> int:
    high, low = encode(Message.KICK, values.pop("session", pair.client._number), **values)
    return pair.client_partition.port.send_sub_crq(pair.client.node.unit_address, cookie, high, low, 0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"queue": 0, "generation": 2},
        {"queue": 0, "session": 999, "generation": 1},
        {"queue": 1, "generation": 1},
        {"queue": 99, "generation": 1},
    ],
)
def test_kick_of_another_session_generation_or_queue_is_dropped(values: dict[str, int]) -> None:
    """P5.16, P5.17."""
    pair = pair_of().start()
    assert kick(pair, server_channel(pair), index=1, **values) == ReturnCode.H_SUCCESS
    pair.settle()
    assert pair.server.rejected == 1
    assert pair.server.state == "running"
    pair.close()


def test_used_that_is_wrong_is_dropped_by_the_client() -> None:
    pair = pair_of().start()
    cookie = carrier(pair.client._channels, 0).cookie
    element = encode(Message.USED, pair.client._number, queue=0, index=1, generation=5)
    pair.server_partition.port.send_sub_crq(pair.server.node.unit_address, cookie, *element, 0, 0)
    element = encode(Message.KICK, pair.client._number, queue=0, index=1, generation=1)
    pair.server_partition.port.send_sub_crq(pair.server.node.unit_address, cookie, *element, 0, 0)
    pair.settle()
    assert pair.client._channels.rejected == 2
    pair.close()


def test_late_kick_after_queue_reset_is_void() -> None:
    """P5.17: the generation changes with QUEUE_RESET, although session and cookie stay."""
    pair = pair_of().start()
    cookie = server_channel(pair)
    assert isinstance(pair.driver, EchoDriver)
    pair.driver.reset_queue(0)
    pair.settle()
    assert pair.server._channels.generation(0) == 2
    assert kick(pair, cookie, queue=0, index=3, generation=1) == ReturnCode.H_SUCCESS
    pair.settle()
    assert (pair.server.rejected, pair.server.state) == (1, "running")
    pair.close()


class Silent(Notifier):
    """What takes notifications and sends none."""

    def signal(self, notification: Notification) -> None:
        pass


def test_kick_for_a_queue_may_always_come_over_the_crq_and_the_newer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """P5.16: an older kick that comes later through the Sub-CRQ does not hide the newer one."""
    pair = pair_of().start()
    assert isinstance(pair.driver, EchoDriver)
    queue = pair.client._queues[0]
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_notifier", Silent())
        pair.driver.send(b"one")
        pair.driver.send(b"two")
    pair.client.crq.post(*encode(Message.KICK, pair.client._number, queue=0, index=2))
    kick(pair, server_channel(pair), queue=0, index=1, generation=1)
    pair.settle()
    assert [message for message, _ in pair.driver.answers] == [b"one", b"two"]
    pair.close()


def test_config_write_before_a_kick_is_seen_by_its_request() -> None:
    """P5.16, P5.8: the server empties the CRQ before it serves kicks of a Sub-CRQ."""
    pair = pair_of().start()
    device, driver = pair.device, pair.driver
    assert isinstance(device, EchoDevice)
    assert isinstance(driver, EchoDriver)
    seen: list[int] = []
    handle = device.handle

    def note_then_handle(request: Request) -> None:
        seen.append(device.written)
        handle(request)

    device.handle = note_then_handle  # type: ignore[method-assign]
    assert driver.transport is not None
    pair.server_kernel._handlers.pop(pair.server.node.interrupt)  # the CRQ's interrupt is slow to come
    driver.transport.write_config(4, (42).to_bytes(4, "little"))
    driver.send(b"after")
    pair.settle()
    assert seen == [42]
    pair.close()


def test_kick_takes_the_way_of_the_crq_while_messages_wait_there() -> None:
    """P5.16: H_DROPPED has held back a CONFIG_WRITE, and the kick does not overtake it."""
    pair = pair_of().start()
    device, driver = pair.device, pair.driver
    assert isinstance(device, EchoDevice)
    assert isinstance(driver, EchoDriver)
    assert driver.transport is not None
    port, address = pair.client_partition.port, pair.client.node.unit_address
    stray = encode(Message.KICK, pair.client._number, queue=3, index=0)
    while port.send_crq(address, *stray) == ReturnCode.H_SUCCESS:
        pass
    driver.transport.write_config(4, (43).to_bytes(4, "little"))
    before = len(answers(pair))
    driver.send(b"behind")
    assert "H_SEND_SUB_CRQ" not in pair.client_adapter.ledger.snapshot()["hcalls"]
    pair.advance(1.0)
    assert (before, answers(pair), device.written) == (0, [(b"behind", b"behind")], 43)
    pair.close()


def test_full_sub_crq_delays_kicks_and_loses_none() -> None:
    """P2.6."""
    pair = pair_of().start()
    assert isinstance(pair.driver, EchoDriver)
    while kick(pair, server_channel(pair), queue=0, index=0, generation=1) == ReturnCode.H_SUCCESS:
        pass
    for n in range(10):
        pair.driver.send(b"%d" % n)
    pair.advance(1.0)
    assert len(pair.driver.answers) == 10
    pair.close()


def test_cookie_of_nothing_makes_the_queue_fall_back_to_the_crq() -> None:
    """P5.18: a server that lies about its cookie, or lost its Sub-CRQ, is reached over the CRQ."""
    pair = pair_of().start()
    carrier(pair.client._channels, 1).partner = 0xDEAD
    sent = send_everywhere(pair)
    pair.settle()
    assert answers(pair) == echoed(sent)
    assert carrier(pair.client._channels, 1).undeliverable > 0
    pair.close()


def test_device_parts_move_to_another_server_and_its_queues_to_the_crq() -> None:
    """P5.18: cookies are not part of the state; the client's kicks find nothing and come over the CRQ."""
    pair = pair_of().start()
    first = send_everywhere(pair)
    pair.settle()
    parts = json.loads(json.dumps(pair.server.parts().to_json()))
    pair.server._lost()
    pair.server.adopt(DeviceParts.from_json(parts))
    pair.settle()
    second = send_everywhere(pair)
    pair.settle()
    assert answers(pair) == echoed(first + second)
    assert (pair.server.channels, pair.client.sessions) == (0, 1)
    pair.close()


# resets


@pytest.mark.parametrize("disaster", ["server", "client", "device", "suspend"])
@pytest.mark.parametrize("served", [0, 13])
def test_32_in_flight_on_4_queues_complete_once_each(disaster: str, served: int) -> None:
    """P1.6, P5.18: cookies are exchanged anew and nothing is lost."""
    pair = pair_of().start()
    device = pair.device
    assert isinstance(device, EchoDevice)
    device.hold = True
    sent = send_everywhere(pair)
    pair.settle()
    assert len(device.held) == 32
    old = set(pair.server_adapter.sub_crqs.cookies) | set(pair.client_adapter.sub_crqs.cookies)
    held, device.held = device.held[:served], device.held[served:]
    for request in held:
        device._echo(request)
    assert device.session is not None
    for queue in device.session.queues.values():
        queue.flush()
    device.hold = False
    if disaster == "server":
        pair.server.reset()
    elif disaster == "client":
        pair.client.reset()
    elif disaster == "device":
        pair.client.device_reset()
    else:
        pair.server_kernel.poll()
        pair.hypervisor.prepare_suspend(pair.client_partition)
        device.release()
        pair.settle()
        for queue in device.session.queues.values():
            queue.flush()
        pair.settle()
        pair.hypervisor.suspend(pair.client_partition)
        pair.settle()
        pair.hypervisor.resume(pair.client_partition)
    pair.advance(2.0)
    assert answers(pair) == echoed(sent)
    assert (pair.client.sessions, pair.client.channels, pair.server.channels) == (2, 4, 4)
    assert not old & (set(pair.server_adapter.sub_crqs.cookies) | set(pair.client_adapter.sub_crqs.cookies))
    assert len(pair.server_adapter.sub_crqs) == len(pair.client_adapter.sub_crqs) == 4
    pair.close()


def test_late_kick_of_an_older_session_finds_no_sub_crq() -> None:
    """P5.17."""
    pair = pair_of().start()
    cookie, number = server_channel(pair), pair.client._number
    pair.client.device_reset()
    pair.settle()
    late = kick(pair, cookie, session=number, queue=0, index=1, generation=1)
    assert late == ReturnCode.H_PARAMETER
    pair.close()


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(1, 200), (2, 200), pytest.param(3, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_resets_and_suspensions_at_any_moment_in_threads_lose_and_double_nothing(seed: int, rounds: int) -> None:
    """P1.6, P1.7, P5.16-P5.18 with real concurrency."""
    rng = random.Random(seed)
    hypervisor = Hypervisor(Policy(enable_crq_delays=1))
    pair = pair_of(2, hypervisor=hypervisor, clock=time.monotonic)
    driver = pair.driver
    assert isinstance(driver, EchoDriver)
    pair.server_kernel.start()
    pair.server_kernel.call(pair.server.start)
    pair.client.start()
    sent: list[bytes] = []

    def run_until(done: int) -> None:
        end = time.monotonic() + 20
        while len(driver.answers) < done:
            if not pair.client_kernel.poll():
                pair.client_kernel.wait(0.5)
            assert time.monotonic() < end, f"{len(driver.answers)} of {done}, client {pair.client.state}"

    for number in range(rounds):
        for queue in (0, 1):
            messages = [b"%d.%d.%d" % (number, queue, n) for n in range(rng.randrange(1, 32))]
            sent += messages
            driver.send(*messages, queue=queue)
        for _ in range(rng.randrange(0, 6)):
            pair.client_kernel.poll()
        disaster = rng.choice(("client", "server", "device", "suspend", "none"))
        if disaster == "client":
            pair.client.reset()
        elif disaster == "server":
            pair.server_kernel.call_soon_threadsafe(pair.server.reset)
        elif disaster == "device":
            pair.client.device_reset()
        elif disaster == "suspend":
            hypervisor.suspend(pair.client_partition)  # waits for the server's READY_FOR_SUSPEND
            hypervisor.resume(pair.client_partition)
        if number % 5 == 0:
            run_until(len(sent))
    run_until(len(sent))
    assert answers(pair) == echoed(sent)
    assert pair.client.sessions > rounds // 20
    pair.close()


class Slow:
    """Interrupt handlers of one partition that a test may hold back, source by source."""

    def __init__(self, kernel: PartitionKernel) -> None:
        self.kernel = kernel
        self.held: set[int] = set()
        self.waiting: dict[int, Callable[[], None]] = {}
        request = kernel.request_interrupt

        def held_back(source: int, handler: Callable[[], None]) -> None:
            def call() -> None:
                if source in self.held:
                    self.waiting[source] = handler
                else:
                    handler()

            request(source, call)

        kernel.request_interrupt = held_back  # type: ignore[method-assign]

    def hold(self, place: int) -> None:
        sources = sorted(self.kernel._handlers)
        if sources:
            self.held.add(sources[place % len(sources)])

    def release(self) -> None:
        self.held.clear()
        while self.waiting:
            self.kernel.call_soon(self.waiting.popitem()[1])


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 2)),
    st.tuples(st.sampled_from(["server turn", "client turn"]), st.integers(1, 3)),
    st.tuples(st.sampled_from(["server slow", "client slow"]), st.integers(0, 4)),
    st.tuples(st.just("release"), st.just(0)),
    st.tuples(
        st.sampled_from(["server reset", "client reset", "device reset", "suspend", "resume", "config", "hold"]),
        st.just(0),
    ),
    st.tuples(st.just("hostile kick"), st.integers(0, 2**40)),
)


@given(st.lists(STEPS, max_size=40))
def test_any_order_of_queues_turns_and_disasters_loses_and_doubles_nothing(steps: list[tuple[str, int]]) -> None:
    """P1.6, P5.16-P5.18: either queue may be looked at long after the other."""
    device, driver = EchoDevice(queue_count=3), EchoDriver(queue_count=3)
    pair = PartitionPair(device, driver)
    slow = (Slow(pair.server_kernel), Slow(pair.client_kernel))
    pair.start()
    sent: list[bytes] = []
    suspended = False
    for step, value in steps:
        if step == "send":
            messages = [b"%d.%d" % (len(sent), n) for n in range(3)]
            sent += messages
            driver.send(*messages, queue=value)
        elif step.endswith("turn"):
            for _ in range(value):
                (pair.server_kernel if step.startswith("server") else pair.client_kernel).poll()
        elif step.endswith("slow"):
            slow[step.startswith("client")].hold(value)
        elif step == "release":
            for kernel in slow:
                kernel.release()
        elif step == "server reset":
            pair.server.reset()
        elif step == "client reset":
            pair.client.reset()
        elif step == "device reset":
            pair.client.device_reset()
        elif step == "config" and driver.transport is not None:
            driver.transport.write_config(4, len(sent).to_bytes(4, "little"))
        elif step == "hold":
            device.hold = not device.hold
            if not device.hold:
                for queue in range(3 if device.session is not None else 0):
                    device.release(queue)
        elif step == "suspend" and not suspended:
            pair.server_adapter.prepare_msec = None  # nobody is waited for
            pair.hypervisor.suspend(pair.client_partition)
            suspended = True
        elif step == "resume" and suspended:
            pair.hypervisor.resume(pair.client_partition)
            suspended = False
        elif step == "hostile kick":
            for cookie in list(pair.server_adapter.sub_crqs.cookies):
                kick(
                    pair, cookie, queue=value % 5, index=value >> 8 & 3, generation=value >> 32, session=value >> 2 & 7
                )
    if suspended:
        pair.hypervisor.resume(pair.client_partition)
    device.hold = False
    for _ in range(3):
        for kernel in slow:
            kernel.release()
        pair.settle()
        for queue in range(3 if device.session is not None else 0):
            device.release(queue)
        pair.advance(15.0)
    assert sorted(driver.answers) == echoed(sent)
    pair.close()
