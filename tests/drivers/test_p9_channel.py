"""The driver that carries a 9P client's messages, against the device and against hostile ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from powervio.devices.p9 import P9Device
from powervio.devices.p9_serve import READ_DATA, WRITE_DATA
from powervio.drivers.p9_channel import ANSWER_BYTES, LARGE, LARGE_BUFFERS, MESSAGE_BYTES, SLOTS, P9Driver
from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Payload
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.virtio import p9
from powervio.virtio.device import Device
from powervio.virtio.queue import ByteOrder, Request

pytestmark = pytest.mark.dual


def message(kind: int, tag: int, body: bytes, more: int = 0) -> bytes:
    return struct.pack("<IBH", 7 + len(body) + more, kind, tag) + body


class Mirror:
    """A session that gives back what it was given last."""

    def __init__(self) -> None:
        self.data = b""

    def handle(self, text: bytes, source: Payload, target: Payload) -> bytes:
        _, kind, tag = struct.unpack_from("<IBH", text)
        if kind == 118:
            _, _, count = struct.unpack_from("<IQI", text, 7)
            pieces = [(at, min(65536, count - at)) for at in range(0, count, 65536)]
            self.data = b"".join(source.read(WRITE_DATA + at, length) for at, length in pieces)
            return message(119, tag, struct.pack("<I", count))
        if kind == 116:
            data = self.data[: target.length - READ_DATA]
            target.write(READ_DATA, data)
            return message(117, tag, struct.pack("<I", len(data)), len(data))
        return message(kind + 1, tag, text[7:])

    def close(self) -> None:
        pass


class Client:
    """What it sends and what it is told."""

    def __init__(self, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self.answers: list[bytes] = []
        self.connections = 0
        self.losses = 0
        self.ends = 0
        self.driver = P9Driver(self, self.connected, soon=soon)

    def connected(self) -> None:
        self.connections += 1

    def received(self, answer: memoryview) -> None:
        self.answers.append(bytes(answer))

    def lost(self) -> None:
        self.losses += 1

    def ended(self) -> None:
        self.ends += 1

    def write(self, tag: int, data: bytes) -> None:
        self.driver.send(message(118, tag, struct.pack("<IQI", 1, 0, len(data)), len(data)), memoryview(data))

    def read(self, tag: int, count: int) -> None:
        self.driver.send(message(116, tag, struct.pack("<IQI", 1, 0, count)), None)


@pytest.mark.parametrize("count", [0, 1, 4000, 5000, 8181, 8182, 65536, LARGE - WRITE_DATA])
@pytest.mark.parametrize("revision", [0, 1])
def test_messages_and_data_go_and_come(revision: int, count: int) -> None:  # F1.2, F3.1, F3.4
    client = Client()
    pair = PartitionPair(P9Device("share", Mirror), client.driver, revision=revision, memory=32 << 20).start()
    data = bytes(at % 253 for at in range(count))
    client.write(1, data)
    client.read(2, count)
    client.driver.send(message(120, 3, b"\1\2\3\4"), None)
    pair.settle()
    assert client.driver.tag == "share"
    assert sorted(client.answers, key=lambda text: text[5]) == [
        message(119, 1, struct.pack("<I", count)),
        message(117, 2, struct.pack("<I", count) + data),
        message(121, 3, b"\1\2\3\4"),
    ]
    pair.close()


def test_more_than_there_is_room_for_waits_and_is_sent_in_its_order() -> None:
    client = Client()
    link = DirectLink(P9Device("share", Mirror), client.driver)
    link.connect()
    for tag in range(3 * SLOTS):
        if tag % 3:
            client.read(tag, 100)
        else:
            client.write(tag, bytes([tag]) * 20_000 if tag < 3 * LARGE_BUFFERS + 9 else bytes([tag]))
    link.run()
    assert [text[5] for text in client.answers] == list(range(3 * SLOTS))
    link.close()


def test_message_without_a_session_is_not_sent_and_a_loss_is_told_once() -> None:  # F4.1
    client = Client()
    client.driver.send(message(120, 3, b""), None)
    client.driver.stop()
    link = DirectLink(P9Device("share", Mirror), client.driver)
    link.connect()
    client.driver.send(message(120, 4, b""), None)
    link.disconnect()
    assert (client.connections, client.losses, client.answers) == (1, 1, [])
    link.connect()
    client.driver.send(message(120, 5, b""), None)
    link.run()
    assert (client.connections, client.losses, client.answers) == (2, 1, [message(121, 5, b"")])
    link.close()


def test_client_is_told_that_the_device_is_gone_for_good() -> None:
    client = Client()
    client.driver.removed("unplugged")
    client.driver.close()
    assert client.ends == 2


def test_one_kick_for_what_is_sent_together() -> None:
    later: list[Callable[[], None]] = []
    client = Client(later.append)
    link = DirectLink(P9Device("share", Mirror), client.driver)
    link.connect()
    for tag in range(5):
        client.driver.send(message(120, tag, b""), None)
    assert (link.kicks, len(later)) == (0, 1)
    later.pop()()
    assert link.kicks == 1
    link.run()
    assert len(client.answers) == 5
    link.close()


def test_message_that_no_buffer_holds_is_refused() -> None:
    client = Client()
    link = DirectLink(P9Device("share", Mirror), client.driver)
    link.connect()
    with pytest.raises(LocalError, match="expected at most"):
        client.write(1, bytes(LARGE))
    with pytest.raises(LocalError, match="expected at most"):
        client.read(1, LARGE)
    link.close()


def test_memory_that_runs_out_makes_messages_wait() -> None:
    client = Client()
    device = P9Device("share", Mirror)
    link = DirectLink(device, client.driver, memory=(64 + 3 * 12 + 2 * LARGE // 1024) << 10)
    link.connect()
    for tag in range(8):
        client.write(tag, bytes([tag]) * 10_000)
    link.run()
    assert [text[5] for text in client.answers] == list(range(8))
    released: list[int] = []
    link.disconnect()
    client.driver.release(lambda buffer: released.append(buffer.length))
    assert released.count(LARGE) == 2
    assert set(released) == {LARGE, MESSAGE_BYTES + ANSWER_BYTES}
    link.close()


class Liar(Device):
    """Answers with bytes of its own, and says that it wrote so many."""

    device_id = p9.DEVICE_ID
    features = p9.F_MOUNT_TAG

    def __init__(self, answer: bytes, used: int, tag: bytes = b"share") -> None:
        super().__init__()
        self.answer = answer
        self.used = used
        self._tag = tag

    def config(self, byteorder: ByteOrder) -> bytes:
        return p9.pack_config(self._tag, byteorder)

    def handle(self, request: Request) -> None:
        request.writable.write(0, self.answer)
        request.complete(self.used)


@pytest.mark.parametrize(
    ("answer", "used"),
    [
        (b"", 0),  # no answer
        (message(121, 3, b""), 6),
        (message(121, 3, b""), 8),
        (message(121, 3, b"", 1), 7),
        (message(121, 3, bytes(300)), 7),
        (message(121, 3, bytes(ANSWER_BYTES)), ANSWER_BYTES + 7),
    ],
)
def test_lengths_that_are_not_the_answers_end_the_session(answer: bytes, used: int) -> None:  # F3.5, F5.3
    client = Client()
    link = DirectLink(Liar(answer[:ANSWER_BYTES], used), client.driver)
    link.connect()
    client.driver.send(message(120, 3, b""), None)
    with pytest.raises(RemoteError):
        link.run()
    assert client.answers == []
    link.disconnect()
    assert client.losses == 1
    link.close()


def test_device_without_a_tag_is_refused() -> None:  # F2.1
    client = Client()
    link = DirectLink(Liar(b"", 0, b""), client.driver)
    with pytest.raises(RemoteError, match="tag"):
        link.connect()
    assert client.connections == 0
    link.close()
