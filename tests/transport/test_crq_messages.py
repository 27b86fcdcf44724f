"""The wire of virtio over CRQ: golden bytes of messages and blocks, and what a server does with bad ones (P2-P5)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import RemoteError
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.protocol import (
    HEADERS,
    LAYOUT,
    REPLY,
    DeviceHeader,
    HeaderR0,
    HeaderR1,
    Message,
    QueueAddresses,
    Status,
    decode,
    describe,
    encode,
)

GOLDEN = Path(__file__).parent / "golden"

MESSAGES: dict[str, tuple[int, int]] = {
    "probe-r0-big": encode(Message.PROBE, 0, revision=0, flags=1, length=512, address=0x1000),
    "probe-r1": encode(Message.PROBE, 7, revision=1, length=512, address=0x1000),
    "probe-reply": encode(Message.PROBE | REPLY, 7, status=Status.OK, value=1),
    "acknowledge": encode(Message.ACKNOWLEDGE, 7, length=60, address=0x2000),
    "acknowledge-reply": encode(Message.ACKNOWLEDGE | REPLY, 7, status=0, device_status=1, value=60, data=3),
    "driver": encode(Message.DRIVER, 7),
    "driver-reply": encode(Message.DRIVER | REPLY, 7, device_status=3),
    "features-ok": encode(Message.FEATURES_OK, 7),
    "features-ok-refused": encode(Message.FEATURES_OK | REPLY, 7, status=Status.BAD_FEATURES, device_status=3),
    "find-vqs": encode(Message.FIND_VQS, 7, count=2, length=64, address=0x3000),
    "find-vqs-reply": encode(Message.FIND_VQS | REPLY, 7, device_status=11, value=2),
    "driver-ok": encode(Message.DRIVER_OK, 7),
    "driver-ok-reply": encode(Message.DRIVER_OK | REPLY, 7, device_status=15),
    "kick": encode(Message.KICK, 7, queue=1, index=0xFFFE),
    "kick-packed": encode(Message.KICK, 7, queue=1, index=0x8003, round=2),
    "used": encode(Message.USED, 7, queue=1, index=0xFFFD),
    "config-write": encode(Message.CONFIG_WRITE, 7, offset=32, length=1, data=1 << 56),
    "config-write-reply": encode(Message.CONFIG_WRITE | REPLY, 7, device_status=15, data=4),
    "config-read": encode(Message.CONFIG_READ, 7),
    "config-changed": encode(Message.CONFIG_CHANGED, 7, device_status=15, value=60, data=5),
    "needs-reset": encode(Message.CONFIG_CHANGED, 7, device_status=79, value=60, data=5),
    "reset": encode(Message.RESET, 7),
    "reset-reply": encode(Message.RESET | REPLY, 7),
    "failed": encode(Message.FAILED, 7),
    "queue-reset": encode(Message.QUEUE_RESET, 7, queue=1),
    "suspend": encode(Message.SUSPEND, 7),
    "resume": encode(Message.RESUME, 7),
    "channels": encode(Message.CHANNELS, 7, count=2, length=64, address=0x4000),
    "channels-reply": encode(Message.CHANNELS | REPLY, 7, status=Status.UNSUPPORTED, device_status=11),
}
BLOCKS: dict[str, bytes] = {
    "header-r0": HeaderR0.pack(DeviceHeader(2, 1, 128, 0x3000_7244, 0x3000_0204, 60, 0)),
    "header-r1": HeaderR1.pack(DeviceHeader(2, 4, 256, (1 << 70) | 0x3_3000_7244, 1 << 32, 60, 15, 9)),
    "queue-addresses": QueueAddresses(1, 128, 0x10000, 0x10800, 0x10A00).pack(),
}


def golden(name: str, data: bytes) -> bytes:
    """The golden file; a missing one is written so that it can be looked at and committed, and fails the test."""
    path = GOLDEN / f"{name}.bin"
    if not path.exists():
        GOLDEN.mkdir(exist_ok=True)
        path.write_bytes(data)
        pytest.fail(f"{path} did not exist and was written: look at it and commit it")
    return path.read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_message_has_its_golden_bytes(name: str) -> None:
    high, low = MESSAGES[name]
    assert high.to_bytes(8, "big") + low.to_bytes(8, "big") == golden(name, (high << 64 | low).to_bytes(16, "big"))


@pytest.mark.parametrize("name", BLOCKS)
def test_block_has_its_golden_bytes(name: str) -> None:
    assert BLOCKS[name] == golden(name, BLOCKS[name])


def test_every_message_type_has_a_golden_file() -> None:
    """P2.3: a new type has to be pinned too."""
    kinds = {decode(*message)["type"] for message in MESSAGES.values()}
    assert {int(kind) for kind in Message} <= kinds


@given(st.sampled_from(sorted(LAYOUT)), st.integers(0, 0xFFFF), st.data())
def test_encode_and_decode_are_inverse(kind: int, session: int, data: st.DataObject) -> None:
    values = {name: data.draw(st.integers(0, (1 << 8 * size) - 1)) for name, _, size in LAYOUT[kind]}
    assert decode(*encode(kind, session, **values)) == {"type": kind, "session": session, **values}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_element_is_decoded_or_refused(high: int, low: int) -> None:
    with contextlib.suppress(RemoteError):
        decode(high, low)
    assert describe(high, low)


@given(st.sampled_from(sorted(HEADERS)), st.binary(min_size=48, max_size=48))
def test_any_header_block_is_unpacked_and_packed_again(revision: int, block: bytes) -> None:
    codec = HEADERS[revision]
    again = codec.pack(codec.unpack(block))
    assert codec.unpack(again) == codec.unpack(block)


def test_value_that_does_not_fit_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="queue = 0x10000 does not fit into 2 bytes"):
        encode(Message.KICK, 1, queue=0x10000)
    with pytest.raises(ValueError, match="no field colour"):
        encode(Message.KICK, 1, colour=1)


class Prober:
    """A client without a driver: sends what a test says and keeps what comes back."""

    def __init__(self) -> None:
        self.pair = PartitionPair(EchoDevice(queue_count=2), EchoDriver())
        self.replies: list[dict[str, int]] = []
        self.client = self.pair.client
        self.client.crq._on_open = lambda: None
        self.client.crq.inbox.on_message = lambda high, low: self.replies.append(decode(high, low))
        self.pair.start()

    def ask(self, kind: int, session: int = 5, **values: int) -> dict[str, int]:
        """Send a message and return the only reply."""
        self.replies.clear()
        self.client.crq.post(*encode(kind, session, **values))
        self.pair.settle()
        assert len(self.replies) == 1, self.replies
        assert self.replies[0]["type"] == kind | REPLY
        return self.replies[0]

    def status(self, kind: int, session: int = 5, **values: int) -> Status:
        return Status(self.ask(kind, session, **values)["status"])

    def probe(self, revision: int = 1, **values: int) -> Status:
        block = {"length": 512, "address": self.client._handshake.header_memory.ioba, **values}
        return self.status(Message.PROBE, 5 if revision else 0, revision=revision, **block)

    def until_features(self) -> None:
        """A good session up to and with FEATURES_OK."""
        assert self.probe() is Status.OK
        area = self.client._handshake.header_memory
        assert self.status(Message.ACKNOWLEDGE, length=8, address=area.ioba + 256) is Status.OK
        assert self.status(Message.DRIVER) is Status.OK
        area.view[32:48] = ((1 << 32) | (1 << 33) | (1 << 40) | (1 << 43)).to_bytes(16, "big")
        assert self.status(Message.FEATURES_OK) is Status.OK

    def find_vqs(self, *entries: QueueAddresses, **values: int) -> Status:
        area = self.client._handshake.header_memory
        block = b"".join(entry.pack() for entry in entries)
        area.view[128 : 128 + len(block)] = block
        values = {"count": len(entries), "length": len(block), "address": area.ioba + 128, **values}
        return self.status(Message.FIND_VQS, **values)


GOOD = QueueAddresses(0, 16, 0x10000, 0x10100, 0x10200)


def test_probe_with_a_short_header_area_is_refused() -> None:
    """P5.1."""
    assert Prober().probe(length=47) is Status.BAD_LENGTH


def test_probe_with_an_address_that_is_not_mapped_is_refused() -> None:
    assert Prober().probe(address=0x0F00_0000) is Status.BAD_ADDRESS


def test_probe_with_unknown_flags_is_refused() -> None:
    """P4.1."""
    assert Prober().probe(flags=2) is Status.BAD_VALUE
    assert Prober().probe(flags=1) is Status.BAD_VALUE


def test_probe_with_a_future_revision_settles_ours() -> None:
    prober = Prober()
    assert prober.probe(revision=9) is Status.OK
    assert prober.replies[0]["value"] == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Message.DRIVER, Status.BAD_STATE),
        (Message.FEATURES_OK, Status.BAD_STATE),
        (Message.FIND_VQS, Status.BAD_STATE),
        (Message.DRIVER_OK, Status.BAD_STATE),
        (Message.CONFIG_READ, Status.BAD_STATE),
        (Message.CONFIG_WRITE, Status.BAD_STATE),
        (Message.QUEUE_RESET, Status.BAD_FEATURES),
        (Message.SUSPEND, Status.BAD_FEATURES),
        (Message.RESUME, Status.BAD_STATE),
        (Message.CHANNELS, Status.BAD_STATE),
        (Message.RESET, Status.OK),
    ],
)
def test_message_right_after_probe_is_answered(kind: Message, expected: Status) -> None:
    prober = Prober()
    prober.probe()
    assert prober.status(kind) is expected
    assert prober.pair.server.state == "probed"


def test_acknowledge_with_a_short_area_is_refused_and_changes_nothing() -> None:
    """P5.2, P2.5."""
    prober = Prober()
    prober.probe()
    reply = prober.ask(Message.ACKNOWLEDGE, length=7, address=0x1000)
    assert (reply["status"], reply["device_status"]) == (Status.BAD_LENGTH, 0)


def test_message_of_revision_1_in_revision_0_is_unsupported() -> None:
    prober = Prober()
    prober.probe(revision=0)
    assert prober.status(Message.FEATURES_OK, 0) is Status.UNSUPPORTED


@pytest.mark.parametrize("kind", [0x00, 0x10, 0x3F])
def test_unknown_type_is_answered_unsupported(kind: int) -> None:
    """P2.5."""
    prober = Prober()
    prober.probe()
    raw: list[tuple[int, int]] = []
    prober.client.crq.inbox.on_message = lambda high, low: raw.append((high, low))
    prober.client.crq.post(0x80 << 56 | kind << 48 | 5 << 32, 0)
    prober.pair.settle()
    assert [(high >> 48 & 0xFF, high >> 24 & 0xFF) for high, _ in raw] == [(kind | REPLY, Status.UNSUPPORTED)]


def test_message_of_another_session_is_dropped_without_a_reply() -> None:
    """P1.4."""
    prober = Prober()
    prober.probe()
    prober.replies.clear()
    prober.client.crq.post(*encode(Message.DRIVER, 4))
    prober.client.crq.post(*encode(Message.KICK, 4, queue=0, index=1))
    prober.pair.settle()
    assert prober.replies == []
    assert prober.pair.server.rejected == 2


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (GOOD, Status.OK),
        (QueueAddresses(2, 16, 0x10000, 0x10100, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 0, 0x10000, 0x10100, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 24, 0x10000, 0x10100, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 256, 0x10000, 0x10100, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 16, 0x10008, 0x10100, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 16, 0x10000, 0x10101, 0x10200), Status.BAD_QUEUE),
        (QueueAddresses(0, 16, 0x10000, 0x10100, 0x10202), Status.BAD_QUEUE),
    ],
)
def test_find_vqs_checks_each_entry(entry: QueueAddresses, expected: Status) -> None:
    """P3.3, P5.5."""
    prober = Prober()
    prober.until_features()
    assert prober.find_vqs(entry) is expected


def test_find_vqs_with_a_block_of_another_length_is_refused() -> None:
    prober = Prober()
    prober.until_features()
    assert prober.find_vqs(GOOD, length=31) is Status.BAD_LENGTH
    assert prober.find_vqs(GOOD, count=3, length=96) is Status.BAD_LENGTH
    assert prober.find_vqs(count=0, length=0) is Status.BAD_LENGTH


def test_driver_ok_twice_is_refused() -> None:
    prober = Prober()
    prober.until_features()
    prober.find_vqs(GOOD)
    assert prober.status(Message.DRIVER_OK) is Status.OK
    assert prober.status(Message.DRIVER_OK) is Status.BAD_STATE
    assert prober.pair.server.state == "running"


def test_queue_reset_forgets_the_queue_and_find_vqs_brings_it_back() -> None:
    """P5.11."""
    prober = Prober()
    prober.until_features()
    prober.find_vqs(GOOD)
    prober.status(Message.DRIVER_OK)
    assert prober.find_vqs(GOOD) is Status.BAD_QUEUE  # in use
    assert prober.status(Message.QUEUE_RESET, queue=0) is Status.OK
    assert prober.status(Message.QUEUE_RESET, queue=0) is Status.BAD_QUEUE
    assert prober.find_vqs(QueueAddresses(0, 8, 0x20000, 0x20080, 0x20100)) is Status.OK
    assert [queue.ring.size for queue in prober.pair.server._service.queues.values()] == [8]


def test_suspend_stops_service_and_resume_looks_at_every_queue() -> None:
    """P5.12."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    pair.client._request(Message.SUSPEND)
    _accept_replies(pair)
    pair.settle()
    assert pair.server._configuration.current().status.status == 1 | 2 | 8 | 16
    driver.send(b"while asleep")
    pair.settle()
    assert driver.answers == []
    pair.client._request(Message.RESUME)
    pair.settle()
    assert driver.answers == [(b"while asleep", b"while asleep")]
    assert pair.server.state == "running"


def test_suspend_waits_for_what_the_device_has_in_hand() -> None:
    """P5.12: at the reply everything in flight is finished and told."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    replies = _accept_replies(pair)
    device.hold = True
    driver.send(b"one", b"two")
    pair.settle()
    pair.client._request(Message.SUSPEND)
    pair.settle()
    assert (replies, pair.server.state) == ([], "running")
    pair.server_kernel.call(device.release)
    pair.settle()
    assert replies == [(Message.SUSPEND, Status.OK)]
    assert len(driver.answers) == 2
    assert pair.server.session is not None
    assert pair.server.session.status.status == 1 | 2 | 8 | 16


def test_suspend_that_waits_is_given_up_when_another_message_comes() -> None:
    """P2.4: replies are in the order of the messages."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    replies = _accept_replies(pair)
    device.hold = True
    driver.send(b"one")
    pair.settle()
    pair.client._request(Message.SUSPEND)
    pair.client.crq.post(*encode(Message.CONFIG_READ, pair.client._number))  # the client end itself would wait
    pair.settle()
    assert replies == [(Message.SUSPEND, Status.BAD_STATE)]
    device.hold = False
    device.release()
    driver.send(b"two")
    pair.settle()
    assert driver.answers == [(b"one", b"one"), (b"two", b"two")]


def test_driver_ok_of_a_suspended_device_is_refused() -> None:
    prober = Prober()
    prober.until_features()
    prober.find_vqs(GOOD)
    prober.status(Message.DRIVER_OK)
    assert prober.status(Message.SUSPEND) is Status.OK
    assert prober.status(Message.DRIVER_OK) is Status.BAD_STATE


def test_find_vqs_that_names_a_queue_twice_is_refused() -> None:
    prober = Prober()
    prober.until_features()
    assert prober.find_vqs(GOOD, GOOD) is Status.BAD_QUEUE


@pytest.mark.parametrize("kind", [Message.USED, Message.CONFIG_CHANGED, Message.PROBE | REPLY])
def test_message_that_only_a_server_sends_is_refused(kind: int) -> None:
    prober = Prober()
    prober.probe()
    prober.client.crq.post(*encode(kind, 5))
    prober.pair.settle()
    assert prober.pair.server.rejected == 1
    assert prober.status(Message.RESET) is Status.OK


def test_device_with_more_queues_than_revision_0_can_say_shows_255() -> None:
    """P3.1: num_vqs is one byte."""
    driver = EchoDriver(queue_count=2)
    pair = PartitionPair(EchoDevice(queue_count=300, queue_size=8), driver, revision=0).start()
    assert pair.client.header.queue_count == 255
    driver.send(b"x", queue=1)
    pair.settle()
    assert driver.answers == [(b"x", b"x")]


def _accept_replies(pair: PartitionPair) -> list[tuple[int, int]]:
    """Messages that are sent past `VirtioVio.suspend` have replies that nobody waits for. They are collected."""
    original = pair.client._answered
    replies: list[tuple[int, int]] = []

    def answered(kind: Message, reply: dict[str, int]) -> None:
        if kind in (Message.SUSPEND, Message.RESUME):
            replies.append((kind, reply["status"]))
        else:
            original(kind, reply)

    pair.client._answered = answered  # type: ignore[method-assign]
    return replies


@given(st.lists(st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**64 - 1)), max_size=40))
def test_any_messages_leave_the_server_able_to_serve(elements: list[tuple[int, int]]) -> None:
    """The hostile partner: whatever it sends, no exception leaves the server, and a good client is served after."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver).start()
    number = pair.client._number
    for high, low in elements:
        # half of them carry the right session number, or little would get past P1.4
        high = high & ~(0xFFFF << 32) | number << 32 if high & 1 else high
        pair.client.crq.post(0x80 << 56 | high, low)
        pair.settle()
    pair.client.reset()
    pair.advance(5)
    driver.send(b"good")
    pair.settle()
    assert (b"good", b"good") in driver.answers
    pair.close()
