"""The 9P device (docs/virtio-9p.md): what it makes of buffers, whatever the session behind it answers."""

from __future__ import annotations

import errno
import struct

import pytest

from powervio.devices.p9 import P9Device
from powervio.devices.p9_serve import ERROR_ROOM, READ_DATA, WRITE_DATA
from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Payload
from powervio.testing.direct import DirectLink, bytewise, whole
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import p9

TVERSION, TREAD, TWRITE, TCLUNK = 100, 116, 118, 120


def message(kind: int, tag: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<IBH", 7 + len(body) if size is None else size, kind, tag) + body


def tread(tag: int, count: int, offset: int = 0) -> bytes:
    return message(TREAD, tag, struct.pack("<IQI", 1, offset, count))


def twrite(tag: int, data: bytes, offset: int = 0) -> bytes:
    return message(TWRITE, tag, struct.pack("<IQI", 1, offset, len(data)) + data)


def error(tag: int, number: int) -> bytes:
    return message(7, tag, struct.pack("<I", number))


class Pool:
    """A session that has one file, of memory; what it heard is kept."""

    def __init__(self, data: bytes = b"") -> None:
        self.file = bytearray(data)
        self.heard: list[bytes] = []
        self.closed = False
        self.answer: bytes | None = None

    def handle(self, text: bytes, source: Payload, target: Payload) -> bytes:
        self.heard.append(text)
        _, kind, tag = struct.unpack_from("<IBH", text)
        if self.answer is not None:
            return self.answer
        if kind == TREAD:
            _, offset, count = struct.unpack_from("<IQI", text, 7)
            data = bytes(self.file[offset : offset + min(count, target.length - READ_DATA)])
            target.write(READ_DATA, data)
            return message(kind + 1, tag, struct.pack("<I", len(data)), READ_DATA + len(data))
        if kind == TWRITE:
            _, offset, count = struct.unpack_from("<IQI", text, 7)
            pieces = [(at, min(65536, count - at)) for at in range(0, count, 65536)]
            data = b"".join(source.read(WRITE_DATA + at, length) for at, length in pieces)
            self.file[offset : offset + count] = data
            return message(kind + 1, tag, struct.pack("<I", count))
        return message(kind + 1, tag, b"")

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Rig:
    """A device with such sessions and a raw driver, joined directly or over CRQ."""

    def __init__(self, *, crq: bool = False, data: bytes = b"", framing: object = whole, big_endian: bool = False):
        self.sessions: list[Pool] = []
        self.data = data
        self.device = P9Device("share", self._session)
        self.driver = RawDriver()
        self.driver.device_id = p9.DEVICE_ID  # type: ignore[misc]
        if crq:
            self.pair: PartitionPair | None = PartitionPair(self.device, self.driver, memory=32 << 20).start()
        else:
            self.pair = None
            self.link = DirectLink(
                self.device,
                self.driver,
                framing=framing,  # type: ignore[arg-type]
                byteorder="big" if big_endian else "little",
            )
            self.link.connect()

    def _session(self) -> Pool:
        self.sessions.append(Pool(self.data))
        return self.sessions[-1]

    def run(self) -> None:
        if self.pair is not None:
            self.pair.settle()
        else:
            self.link.run()

    def ask(self, readable: bytes, room: int) -> Exchange:
        exchange = self.driver.send([readable] if readable else [], [room] if room else [])
        self.run()
        return exchange

    def close(self) -> None:
        if self.pair is not None:
            self.pair.close()
        else:
            self.link.close()


@pytest.fixture(params=["direct", "crq"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(crq=request.param == "crq", data=bytes(range(256)) * 4096)


pytestmark = pytest.mark.dual


def test_device_type_queue_and_feature() -> None:  # F1.1, F2.1
    rig = Rig()
    assert (rig.device.device_id, rig.device.queue_count, rig.device.features) == (9, 1, 1)
    rig.close()


@pytest.mark.parametrize(("order", "text"), [("little", b"\5\0share"), ("big", b"\0\5share")])
def test_config_space_follows_the_byte_order_of_the_device(order: str, text: bytes) -> None:  # F2.3
    assert p9.pack_config(b"share", order) == text
    assert p9.unpack_config(text + b"\0", order) == "share"


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "a\n", "x" * 254, "\x7f"])
def test_tag_that_mount_cannot_name_is_refused(tag: str) -> None:  # F2.2
    with pytest.raises(LocalError, match="mount tag"):
        P9Device(tag, Pool)


@pytest.mark.parametrize("config", [b"", b"\5", b"\0\0", b"\5\0shar", b"\1\0\xff"])
def test_config_space_without_a_tag_is_the_devices_fault(config: bytes) -> None:  # F2.1
    with pytest.raises(RemoteError):
        p9.unpack_config(config, "little")


def test_messages_are_little_endian_for_a_big_endian_driver(rig: Rig) -> None:  # F1.2
    rig.close()
    rig = Rig(big_endian=True)
    exchange = rig.ask(message(TCLUNK, 0x102, b"\1\0\0\0"), 300)
    assert exchange.answer[: exchange.used] == b"\x07\0\0\0\x79\x02\x01"
    rig.close()


@pytest.mark.parametrize("count", [0, 1, 100, 5000, 16000, 16384, 100_000, 300_000])
def test_reads_and_their_length(rig: Rig, count: int) -> None:  # F3.1, F3.5
    exchange = rig.ask(tread(5, count, 7), READ_DATA + count)
    assert exchange.used == READ_DATA + count
    assert exchange.answer == struct.pack("<IBHI", READ_DATA + count, 117, 5, count) + rig.data[7 : 7 + count]
    assert rig.device.counters.bytes_read == count
    rig.close()


@pytest.mark.parametrize("count", [0, 1, 100, 5000, 300_000])
def test_writes(rig: Rig, count: int) -> None:  # F3.1
    data = bytes(at % 251 for at in range(count))
    exchange = rig.ask(twrite(5, data, 3), 4096)
    assert exchange.answer[: exchange.used] == message(119, 5, struct.pack("<I", count))
    (session,) = rig.sessions
    assert session.file[3 : 3 + count] == data
    assert session.heard == [twrite(5, data, 3)[: WRITE_DATA + count if count < 4000 else WRITE_DATA]]  # as they come
    rig.close()


def test_framing_says_nothing() -> None:  # F3.1
    rig = Rig(framing=bytewise, data=bytes(range(200)))
    assert rig.ask(twrite(1, b"abc", 10), 256).used == 11
    exchange = rig.ask(tread(2, 20, 5), 31)
    assert exchange.answer[READ_DATA:] == bytes(range(5, 10)) + b"abc" + bytes(range(13, 25))
    rig.close()


def test_what_is_behind_size_is_ignored_and_what_is_missing_refused(rig: Rig) -> None:  # F3.2
    assert rig.ask(message(TCLUNK, 1, b"\1\0\0\0") + b"rest" * 5, 256).used == 7
    assert rig.sessions[0].heard == [message(TCLUNK, 1, b"\1\0\0\0")]
    for size in (0, 6, 12, 0xFFFF_FFFF):
        exchange = rig.ask(message(TCLUNK, 2, b"\1\0\0\0", size), 256)
        assert exchange.answer[: exchange.used] == error(2, errno.EPROTO)
    for length in range(7):
        assert rig.ask(message(TCLUNK, 2, b"")[:length], 256).used == 0
    assert len(rig.sessions[0].heard) == 1
    assert (rig.device.counters.errors, rig.device.counters.refused) == (4, 7)
    rig.close()


def test_answers_never_go_beyond_the_room(rig: Rig) -> None:  # F3.3
    for room in range(ERROR_ROOM):
        assert rig.ask(tread(3, 5), room).used == 0
    exchange = rig.ask(tread(3, 1000), READ_DATA + 10)
    assert exchange.used == READ_DATA + 10
    assert exchange.answer == struct.pack("<IBHI", READ_DATA + 10, 117, 3, 10) + rig.data[:10]
    assert len(rig.sessions[0].heard) == 1
    for text, room in (
        (message(24, 4, bytes(12)), 160),
        (message(104, 4, bytes(14)), 20),
        (message(110, 4, struct.pack("<IIH", 1, 2, 3) + b"\1\0a" * 3), 9 + 3 * 13),
    ):
        exchange = rig.ask(text, room - 1)
        assert exchange.answer[: exchange.used] == error(4, errno.EMSGSIZE)
        assert len(rig.sessions[0].heard) == 1  # nothing was done
    assert rig.ask(message(110, 4, struct.pack("<IIH", 1, 2, 60_000)), 9 + 16 * 13).used == 7  # the session's to refuse
    rig.sessions[0].answer = message(23, 5, bytes(400))
    exchange = rig.ask(message(22, 5, b"\1\0\0\0"), 300)
    assert exchange.answer[: exchange.used] == error(5, errno.EMSGSIZE)
    rig.close()


def test_linux_gets_125_pages() -> None:  # F3.4
    assert p9.msize_of(128) == p9.LINUX_MSIZE == 512_000
    assert p9.msize_of(128, 65536) == 8_192_000


def test_message_that_is_too_long_for_any_is_refused_unread(rig: Rig) -> None:  # F3.2
    exchange = rig.ask(message(110, 9, bytes(300_000)), 256)
    assert exchange.answer[: exchange.used] == error(9, errno.EMSGSIZE)
    assert not rig.sessions[0].heard
    rig.close()


def test_messages_that_come_together_are_carried_out_in_their_order(rig: Rig) -> None:  # F3.6
    wanted = []
    exchanges = []
    for number in range(40):
        text = twrite(number, bytes([number]) * 10, 4) if number % 2 else tread(number, 10, 4)
        exchanges.append(rig.driver.send([text], [256]))
        wanted.append(bytes([number - 1]) * 10 if number > 1 else rig.data[4:14])
    rig.run()
    assert [each.times for each in exchanges] == [1] * 40
    for number in range(0, 40, 2):
        assert exchanges[number].used == READ_DATA + 10
        assert exchanges[number].answer[READ_DATA : READ_DATA + 10] == wanted[number]
        assert exchanges[number].answer[READ_DATA + 10 :].strip(b"\xee\0") == b""
    rig.close()


def test_session_ends_with_the_devices_and_another_begins() -> None:  # F4.1
    rig = Rig()
    rig.link.disconnect()
    assert [session.closed for session in rig.sessions] == [True]
    rig.link.connect()
    assert [session.closed for session in rig.sessions] == [True, False]
    rig.close()
    assert [session.closed for session in rig.sessions] == [True, True]
    closed: list[str] = []
    device = P9Device("x", Pool, close=lambda: closed.append("x"))
    device.close()
    device.close()
    assert closed == ["x"]


@pytest.mark.parametrize("text", [tread(1, 100_000), twrite(1, bytes(100_000)), message(TCLUNK, 1, b"\0\0\0\0")])
def test_memory_that_is_not_there_fails_its_request_alone(text: bytes) -> None:  # F5.1
    rig = Rig(data=bytes(200_000))
    for bad in (len(text), 200_000):

        def framing(segment: tuple[int, int], bad: int = bad) -> list[tuple[int, int]]:
            return [(0xDEAD_0000_0000, segment[1]) if segment[1] == bad else segment]

        rig.link.framing = framing
        exchange = rig.driver.send([text], [200_000])
        rig.link.framing = whole
        rig.run()
        assert exchange.used == 0
    assert rig.device.counters.refused == 2
    assert rig.ask(message(TCLUNK, 1, b"\0\0\0\0"), 256).used == 7
    rig.close()


def test_over_crq_too() -> None:  # F5.1
    rig = Rig(crq=True, data=bytes(200_000))
    assert rig.pair is not None
    assert rig.driver.transport is not None
    lost = rig.driver.transport.allocate(8192, mapped=True)
    queue = rig.driver.transport.queues[0]
    exchange = rig.driver.send([tread(1, 100)], [300])
    assert queue.add([(lost, 0, 20)], [(lost, 4096, 4096)], Exchange(lost, 4096, 4096))
    rig.driver.transport.release(lost)
    queue.kick()
    rig.run()
    assert exchange.used == READ_DATA + 100
    rig.close()


def test_head_is_read_once() -> None:  # F5.2
    rig = Rig(data=bytes(1000))
    session = rig.sessions[0]
    seen: list[bytes] = []

    def handle(text: bytes, source: Payload, target: Payload) -> bytes:
        source.read(0, 4)
        seen.append(text)
        return message(119, 1, struct.pack("<I", 5))

    session.handle = handle  # type: ignore[method-assign]
    text = twrite(1, bytes(5000))
    assert rig.ask(text, 256).used == 11
    assert seen == [text[:WRITE_DATA]]
    rig.close()


def test_close_without_session_is_harmless() -> None:
    device = P9Device("share", Pool)
    device.close()
