"""What a hostile client can do to a VIO server: nothing but to itself (docs/protocol.md, P1 to P6).

`Client` speaks the protocol by hand, so it can say what no driver of ours would. It has one mapped area of its own for
header, config, rings and data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import pack, pack_into, unpack_from
from typing import TypeAlias

import pytest

from powervio.devices.block import BlockDevice
from powervio.memory.abstract import Backing
from powervio.papr.crq import InitCode, init_message
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.protocol import HEADERS, REPLY, Message, QueueAddresses, Status, decode, encode
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk
from powervio.virtio import features as feature
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request
from powervio.virtio.status import DRIVER_OK, NEEDS_RESET

AREA = 4 << 20
HEADER, CONFIG, BLOCK, RINGS, DATA = 0, 0x1000, 0x2000, 0x1_0000, 0x10_0000
RING_STRIDE, USED_AT = 0x1_0000, 0x8000
"""The used ring has pages of its own, so that a test can unmap it alone."""
NOT_MAPPED = 0x0F00_0000
NEXT, WRITE = 1, 2

Descriptor: TypeAlias = tuple[int, int, int]
"""Offset in the area, bytes, flags without NEXT."""
Told: TypeAlias = dict[str, int]


class Client:
    """A client without a driver: tells the server what a test says, and keeps what comes back."""

    def __init__(self, device: Device, *, spare_memory: int | None = None, redirect: bool = False) -> None:
        """`spare_memory` is what the server's partition has left for rings, in bytes."""
        self.pair = PartitionPair(device, EchoDriver(), redirect=redirect)
        self.server = self.pair.server
        self.kernel = self.pair.server_kernel
        self.port = self.pair.client_partition.port
        self.told: list[Told] = []
        self.session = 1
        self._dma = self.pair.client._dma
        self._area = self._dma.allocate(AREA)
        self.view = self._area.view
        self._size = 0
        self._available: dict[int, int] = {}
        self.crq = self.pair.client.crq
        self.crq._on_open = self.crq._on_lost = lambda: None
        self.crq.inbox.on_message = lambda high, low: self.told.append(decode(high, low))
        self.pair.server.start()
        self.crq.register()
        self.pair.settle()
        if spare_memory is not None:
            pages = self.kernel.pages
            pages.allocate(pages.free_bytes - spare_memory)

    def address(self, offset: int) -> int:
        """I/O bus address of a place in the area."""
        return self._area.ioba + offset

    def unmap(self, offset: int, pages: int = 1) -> None:
        """Take pages away from the server."""
        for page in range(pages):
            self.port.put_tce(self._dma.liobn, self.address(offset) + page * 4096, 0)

    def tell(self, kind: int, session: int | None = None, **values: int) -> list[Told]:
        """Send a message; what the server says until both are idle."""
        self.told.clear()
        self.crq.post(*encode(kind, self.session if session is None else session, **values))
        self.pair.settle()
        return self.told

    def tell_raw(self, kind: int, session: int) -> list[Told]:
        """The same for a type that has no layout."""
        self.told.clear()
        self.crq.post(0x80 << 56 | kind << 48 | session << 32, 0)
        self.pair.settle()
        return self.told

    def ask(self, kind: int, **values: int) -> Status:
        """Send a message; the status of its only reply."""
        replies = [message for message in self.tell(kind, **values) if message["type"] == kind | REPLY]
        assert len(replies) == 1, self.told
        return Status(replies[0]["status"])

    def probe(self, revision: int = 1, **values: int) -> Status:
        return self.ask(
            Message.PROBE, **{"revision": revision, "length": 512, "address": self.address(HEADER), **values}
        )

    def accept(self, revision: int = 1, refused: int = feature.EVENT_IDX) -> None:
        """Accept what is offered but for `refused`."""
        codec = HEADERS[revision]
        offered = codec.unpack(bytes(self.view[HEADER : HEADER + codec.size])).device_features
        at = HEADER + codec.driver_features_offset
        self.view[at : at + codec.driver_features_size] = codec.pack_driver_features(
            offered & ~refused & ~feature.RING_PACKED
        )

    def entry(self, queue: int) -> QueueAddresses:
        base = RINGS + queue * RING_STRIDE
        used = self.address(base + USED_AT)
        return QueueAddresses(queue, self._size, self.address(base), self.address(base + 16 * self._size), used)

    def find_vqs(self, *queues: int) -> Status:
        block = b"".join(self.entry(queue).pack() for queue in queues)
        self.view[BLOCK : BLOCK + len(block)] = block
        return self.ask(Message.FIND_VQS, count=len(queues), length=len(block), address=self.address(BLOCK))

    def clear_ring(self, queue: int) -> None:
        base = RINGS + queue * RING_STRIDE
        self.view[base : base + RING_STRIDE] = bytes(RING_STRIDE)
        self._available[queue] = 0

    def negotiate(
        self, queues: int = 1, *, size: int = 16, revision: int = 1, refused: int = feature.EVENT_IDX, live: bool = True
    ) -> None:
        """A good handshake; without `live` up to FIND_VQS. `refused` are features that are not accepted."""
        self._size = size
        self.session = 1 if revision else 0
        assert self.probe(revision) is Status.OK
        self._configure(queues, revision, refused, live=live)

    def _configure(self, queues: int, revision: int, refused: int, *, live: bool) -> None:
        assert self.ask(Message.ACKNOWLEDGE, length=0x1000, address=self.address(CONFIG)) is Status.OK
        assert self.ask(Message.DRIVER) is Status.OK
        self.accept(revision, refused)
        if revision:
            assert self.ask(Message.FEATURES_OK) is Status.OK
        for queue in range(queues):
            self.clear_ring(queue)
        if queues:
            assert self.find_vqs(*range(queues)) is Status.OK
        if live:
            assert self.ask(Message.DRIVER_OK) is Status.OK

    def put(self, *chain: Descriptor, head: int = 0, queue: int = 0) -> None:
        """Make a chain available whose descriptors begin at `head`; it is not kicked."""
        base = RINGS + queue * RING_STRIDE
        for number, (offset, length, flags) in enumerate(chain):
            last = number + 1 == len(chain)
            place = base + 16 * (head + number)
            following = 0 if last else head + number + 1
            pack_into("<QIHH", self.view, place, self.address(offset), length, flags | (0 if last else NEXT), following)
        available = base + 16 * self._size
        index = self._available[queue]
        pack_into("<H", self.view, available + 4 + 2 * (index % self._size), head)
        self._available[queue] = index = (index + 1) & 0xFFFF
        pack_into("<H", self.view, available + 2, index)

    def kick(self, queue: int = 0, index: int | None = None) -> None:
        self.tell(Message.KICK, queue=queue, index=self._available[queue] if index is None else index)

    def echo(self, data: bytes, *, head: int = 0, queue: int = 0) -> bytes:
        """A request to an echo device; what is in its writable part afterwards."""
        out, back = DATA, DATA + 0x1000
        self.view[out : out + len(data)] = data
        self.view[back : back + len(data)] = bytes(len(data))
        self.put((out, len(data), 0), (back, len(data), WRITE), head=head, queue=queue)
        self.kick(queue)
        return bytes(self.view[back : back + len(data)])

    def used(self, queue: int = 0) -> int:
        """used.idx as the client's memory has it."""
        index: int = unpack_from("<H", self.view, RINGS + queue * RING_STRIDE + USED_AT + 2)[0]
        return index

    @property
    def status(self) -> int:
        assert self.server.session is not None
        return self.server.session.status.status

    @property
    def live_queues(self) -> list[int]:
        return sorted(self.server._service.queues)


Connect: TypeAlias = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients, each with a machine of its own."""
    made: list[Client] = []

    def make(device: Device, *, spare_memory: int | None = None) -> Client:
        made.append(Client(device, spare_memory=spare_memory))
        return made[-1]

    yield make
    for client in made:
        client.pair.close()


class Blank(Backing):
    """A large disk that has nothing and counts the bytes that are asked of it."""

    size = 1 << 40
    read_only = False
    block_size = 512
    can_discard = False

    def __init__(self) -> None:
        self.moved = 0

    def read_into(self, position: int, buffer: memoryview) -> None:
        self.moved += len(buffer)

    def write_from(self, position: int, buffer: memoryview) -> None:
        self.moved += len(buffer)

    def flush(self) -> None:
        pass

    def discard(self, position: int, length: int) -> None:
        pass

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        pass

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]

    def close(self) -> None:
        pass


# Messages that come at the wrong time, from the wrong end or with wrong contents


def test_acknowledge_with_a_bad_address_may_be_repeated(connect: Connect) -> None:
    """P2.5: a message that is answered with an error has changed nothing."""
    client = connect(EchoDevice())
    client.probe()
    assert client.ask(Message.ACKNOWLEDGE, length=64, address=NOT_MAPPED) is Status.BAD_ADDRESS
    assert client.status == 0
    assert client.ask(Message.CONFIG_READ) is Status.BAD_STATE
    assert client.ask(Message.ACKNOWLEDGE, length=64, address=client.address(CONFIG)) is Status.OK
    assert client.ask(Message.CONFIG_READ) is Status.OK


@pytest.mark.parametrize("wrong", [{"flags": 2}, {"flags": 1}, {"length": 47}, {"address": NOT_MAPPED}])
def test_probe_that_is_refused_leaves_the_running_session_alone(connect: Connect, wrong: dict[str, int]) -> None:
    """P2.5, P5.1."""
    client = connect(EchoDevice())
    client.negotiate()
    assert client.probe(**wrong) is not Status.OK
    assert client.server.state == "running"
    assert client.echo(b"still here") == b"still here"


def test_driver_ok_without_memory_for_the_rings_is_a_device_error_and_nothing_lives(connect: Connect) -> None:
    """P2.5: all four rings or none; the device is not started."""
    client = connect(EchoDevice(queue_count=4, queue_size=1024), spare_memory=100 << 10)
    free = client.kernel.pages.free_bytes
    client.negotiate(4, size=1024, live=False)
    assert client.ask(Message.DRIVER_OK) is Status.DEVICE_ERROR
    assert not client.status & DRIVER_OK
    assert (client.live_queues, client.pair.device.session) == ([], None)
    assert client.kernel.pages.free_bytes == free
    client.echo(b"nobody serves this")
    assert client.used() == 0
    # with one ring there is room: the same session goes on
    assert client.find_vqs(0) is Status.OK
    assert client.ask(Message.DRIVER_OK) is Status.OK
    assert client.echo(b"served", head=4) == b"served"


ANY_OTHER = [kind for kind in Message if kind < 0x40 and kind not in (Message.PROBE, Message.RESET, Message.KICK)]


@pytest.mark.parametrize("kind", ANY_OTHER)
def test_message_after_failed_is_refused(connect: Connect, kind: Message) -> None:
    """P5.10: only RESET or PROBE lead on."""
    client = connect(EchoDevice(queue_count=2))
    client.negotiate()
    assert client.ask(Message.FAILED) is Status.OK
    assert client.ask(kind) is Status.BAD_STATE
    assert (client.live_queues, client.pair.device.session) == ([], None)


@pytest.mark.parametrize("kind", ANY_OTHER)
def test_message_after_needs_reset_is_refused(connect: Connect, kind: Message) -> None:
    """P5.14, P6.6."""
    client = connect(EchoDevice(queue_count=2))
    client.negotiate()
    _break_ring(client)
    assert client.ask(kind) is Status.BAD_STATE
    assert (client.live_queues, client.pair.device.session) == ([], None)


def test_kick_after_needs_reset_touches_no_ring(connect: Connect) -> None:
    """P5.14: all work on the queues has ended."""
    client = connect(EchoDevice())
    client.negotiate()
    _break_ring(client)
    client.clear_ring(0)
    client.echo(b"not now")
    assert client.used() == 0


@pytest.mark.parametrize("way", ["failed", "needs-reset"])
@pytest.mark.parametrize("out", [Message.RESET, Message.PROBE])
def test_reset_and_probe_lead_out_of_a_lost_session(connect: Connect, way: str, out: Message) -> None:
    """P5.9, P5.10."""
    client = connect(EchoDevice())
    client.negotiate()
    if way == "failed":
        client.ask(Message.FAILED)
    else:
        _break_ring(client)
    if out is Message.RESET:
        assert client.ask(Message.RESET) is Status.OK
        client._configure(1, 1, feature.EVENT_IDX, live=True)
    else:
        client.negotiate()
    assert client.echo(b"again") == b"again"


def _break_ring(client: Client) -> None:
    """A head that is out of range: NEEDS_RESET."""
    client.put((DATA, 4, 0), head=0)
    pack_into("<H", client.view, RINGS + 16 * client._size + 4, 4000)
    client.kick()
    assert client.status & NEEDS_RESET


def test_find_vqs_before_driver_ok_replaces_what_an_earlier_one_named(connect: Connect) -> None:
    """P5.5: queues that it does not name do not exist."""
    client = connect(EchoDevice(queue_count=2))
    client.negotiate(2, live=False)
    assert client.find_vqs(1) is Status.OK
    assert client.ask(Message.DRIVER_OK) is Status.OK
    assert client.live_queues == [1]


def test_find_vqs_after_driver_ok_in_revision_0_is_refused(connect: Connect) -> None:
    """P5.5."""
    client = connect(EchoDevice(queue_count=2, queue_size=16))
    client.negotiate(revision=0)
    assert client.find_vqs(1) is Status.BAD_STATE
    assert client.live_queues == [0]


def test_find_vqs_after_driver_ok_without_ring_reset_is_refused(connect: Connect) -> None:
    """P5.5, P5.11."""
    client = connect(EchoDevice(queue_count=2))
    client.negotiate(refused=feature.RING_RESET)
    assert client.find_vqs(1) is Status.BAD_STATE
    assert client.live_queues == [0]


def test_find_vqs_of_a_queue_in_use_while_suspended_is_refused(connect: Connect) -> None:
    """P5.5, P5.12: what `parts` hands over is where the ring is."""
    client = connect(EchoDevice())
    client.negotiate()
    assert client.ask(Message.SUSPEND) is Status.OK
    assert client.find_vqs(0) is Status.BAD_QUEUE
    assert [queue.addresses for queue in client.server.parts().queues] == [client.entry(0)]


def test_queue_that_is_set_up_while_suspended_is_served_after_resume(connect: Connect) -> None:
    """P5.11, P5.12."""
    client = connect(EchoDevice())
    client.negotiate()
    assert client.ask(Message.SUSPEND) is Status.OK
    assert client.ask(Message.QUEUE_RESET, queue=0) is Status.OK
    client.clear_ring(0)
    assert client.find_vqs(0) is Status.OK
    client.echo(b"asleep")
    assert client.used() == 0
    assert client.ask(Message.RESUME) is Status.OK
    assert client.used() == 1
    assert client.echo(b"awake", head=4) == b"awake"


@pytest.mark.parametrize("kind", [0x41, 0x42, 0x6F, 0x81, 0xC1, 0xC2, 0xFF])
@pytest.mark.parametrize("session", [1, 4], ids=["this", "dead"])
def test_type_of_a_server_is_dropped(connect: Connect, kind: int, session: int) -> None:
    """P2.3: an answer to it would look like an event."""
    client = connect(EchoDevice())
    client.negotiate()
    assert client.tell_raw(kind, session) == []
    assert client.server.rejected == 1


@pytest.mark.parametrize("kind", [*ANY_OTHER, Message.RESET, Message.KICK, 0x10, 0x3F])
def test_message_of_a_dead_session_is_not_answered(connect: Connect, kind: int) -> None:
    """P1.4."""
    client = connect(EchoDevice())
    client.negotiate()
    assert client.tell_raw(kind, 4) == []
    assert (client.server.state, client.server.rejected) == ("running", 1)


def test_kick_behind_bad_messages_of_one_burst_is_served(connect: Connect) -> None:
    client = connect(EchoDevice())
    client.negotiate()
    for kind in (0xC1, 0x00, 0x3F):
        client.crq.post(0x80 << 56 | kind << 48 | 1 << 32, 0)
    assert client.echo(b"hello") == b"hello"


def test_client_that_never_empties_its_queue_does_not_bring_a_stopped_server_back(connect: Connect) -> None:
    """P2.6: the connection is cut off in the next pass, unless it is closed by then."""
    client = connect(EchoDevice())
    client.negotiate()
    message = encode(Message.CONFIG_READ, 1)
    for _ in range(6):
        while client.port.send_crq(client.crq._unit_address, *message) == 0:
            pass
        client.kernel.dispatcher.take_interrupts()  # without the deferred calls: the cut-off is still to come
    assert client.kernel._soon
    client.server.stop()
    client.kernel.poll()
    assert client.server.crq.state.value == "closed"
    assert not client.pair.server_adapter.registered


# Requests


def test_kick_ahead_of_the_ring_is_a_hint(connect: Connect) -> None:
    """P6.3: what the copy does not show is not there."""
    client = connect(EchoDevice())
    client.negotiate()
    client.kick(index=3)
    assert (client.used(), client.server.state) == (0, "running")
    assert client.echo(b"real") == b"real"


@pytest.mark.parametrize("index", [0, 1, 0x7FFF, 0xFFFF])
def test_kick_with_any_index_does_no_harm(connect: Connect, index: int) -> None:
    """P6.3."""
    client = connect(EchoDevice())
    client.negotiate()
    client.echo(b"one")
    client.echo(b"two", head=4)
    client.kick(index=index)
    client.kick(queue=9, index=index)
    assert (client.used(), client.server.state) == (2, "running")
    assert client.echo(b"three", head=8) == b"three"


def test_echo_of_more_than_the_bounce_area_comes_back(connect: Connect) -> None:
    """P6.1: 512 KiB in segments that do not continue each other."""
    client = connect(EchoDevice())
    client.negotiate()
    piece = 256 << 10
    first, second, back = DATA, DATA + piece + 4096, DATA + (1 << 20)
    client.view[first : first + piece] = b"\x11" * piece
    client.view[second : second + piece] = b"\x22" * piece
    client.put((first, piece, 0), (second, piece, 0), (back, 2 * piece, WRITE))
    client.kick()
    assert bytes(client.view[back : back + 2 * piece]) == b"\x11" * piece + b"\x22" * piece
    assert client.echo(b"next", head=8) == b"next"


def test_request_of_more_than_max_request_fails_alone_and_moves_nothing(connect: Connect) -> None:
    """One request must not hold up the others of a VIO server: 104 MiB by 13 descriptors of one 8 MiB range."""
    disk = Blank()
    client = connect(BlockDevice(disk))
    client.negotiate()
    status = DATA + 0x1000
    client.view[DATA : DATA + 16] = pack("<IIQ", blk.T_IN, 0, 0)
    client.put((DATA, 16, 0), *[(DATA, 8 << 20, WRITE)] * 13, (status, 1, WRITE))
    client.kick()
    assert (disk.moved, client.used()) == (0, 1)
    assert client.server.state == "running"


def test_other_client_has_its_turn_between_the_passes_over_a_queue(connect: Connect) -> None:
    """A pass takes 8 MiB of requests; then the partition's other adapters are served."""
    disk = Blank()
    client = connect(BlockDevice(disk))
    client.negotiate(size=128)
    victim, victim_kernel = _second_client(client.pair)
    client.view[DATA : DATA + 16] = pack("<IIQ", blk.T_IN, 0, 0)
    for number in range(32):
        data, status = DATA + 0x1000, DATA + 0x800
        client.put((DATA, 16, 0), (data, 1 << 20, WRITE), (status, 1, WRITE), head=3 * number)
    client.crq.post(*encode(Message.KICK, 1, queue=0, index=32))
    victim.send(b"ping")
    client.kernel.poll()  # a pass for the kick, and one for what it left
    victim_kernel.poll()
    assert victim.answers == [(b"ping", b"ping")]
    assert 0 < disk.moved <= 2 * (8 << 20)
    client.pair.settle()
    assert (disk.moved, client.used()) == (32 << 20, 32)
    victim_kernel.close()


def _second_client(pair: PartitionPair) -> tuple[EchoDriver, PartitionKernel]:
    """An honest client of the same VIO server, connected."""
    partition = pair.hypervisor.create_partition("client2", 4 << 20)
    server_adapter, client_adapter = pair.hypervisor.create_pair(pair.server_partition, partition)
    kernel = PartitionKernel(partition.port, clock=pair.clock)
    driver = EchoDriver()
    VirtioCrq(pair.server_kernel, server_adapter.node, EchoDevice()).start()
    VirtioVio(kernel, client_adapter.node, driver).start()
    while pair.server_kernel.poll() | kernel.poll():
        pass
    assert driver.starts == 1
    return driver, kernel


# SUSPEND with requests in the device's hands


def test_suspend_waits_until_every_queue_has_told_its_completions(connect: Connect) -> None:
    """P5.12: completed is not told; each queue is flushed by itself."""
    device = EchoDevice(queue_count=2)
    client = connect(device)
    client.negotiate(2)
    device.hold = True
    client.echo(b"AAAA", queue=0)
    client.echo(b"BBBB", queue=1, head=4)
    assert client.tell(Message.SUSPEND) == []
    device.release(0)
    client.pair.settle()
    assert [message["type"] for message in client.told] == [Message.USED]
    assert device.session is not None
    device.session.queues[1].flush()
    client.pair.settle()
    assert [message["type"] for message in client.told] == [Message.USED, Message.USED, Message.SUSPEND | REPLY]
    assert (client.used(0), client.used(1)) == (1, 1)


def test_suspend_whose_completions_cannot_be_told_is_a_device_error(connect: Connect) -> None:
    """P2.4: it is answered in any case."""
    device = EchoDevice()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    client.tell(Message.SUSPEND)
    client.unmap(RINGS + USED_AT)
    client.kernel.call_soon(device.release)
    client.pair.settle()
    assert [message["type"] for message in client.told] == [Message.SUSPEND | REPLY, Message.CONFIG_CHANGED]
    assert client.told[0]["status"] == Status.DEVICE_ERROR
    assert client.server.state == "needs-reset"


@pytest.mark.parametrize("kind", [Message.RESET, 0x55, Message.KICK])
def test_suspend_is_not_given_up_for_a_message_of_another_session(connect: Connect, kind: int) -> None:
    """P1.4."""
    device = EchoDevice()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    assert client.tell(Message.SUSPEND) == []
    assert client.tell_raw(kind, 77) == []
    device.release()
    client.pair.settle()
    assert client.told[-1]["type"] == Message.SUSPEND | REPLY
    assert client.told[-1]["status"] == Status.OK


def test_suspend_that_is_given_up_for_an_unknown_message_is_answered_first(connect: Connect) -> None:
    """P2.4."""
    device = EchoDevice()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    client.tell(Message.SUSPEND)
    raw: list[tuple[int, int]] = []
    client.crq.inbox.on_message = lambda high, low: raw.append((high >> 48 & 0xFF, high >> 24 & 0xFF))
    client.crq.post(0x80 << 56 | 0x3F << 48 | 1 << 32, 0)
    client.pair.settle()
    assert raw == [(Message.SUSPEND | REPLY, Status.BAD_STATE), (0x3F | REPLY, Status.UNSUPPORTED)]


def test_kick_while_suspend_waits_is_served_only_when_it_was_given_up(connect: Connect) -> None:
    """P5.12: kicks meanwhile are dropped; every queue is looked at afterwards."""
    device = EchoDevice()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    client.tell(Message.SUSPEND)
    device.hold = False
    client.echo(b"BBBB", head=4)
    assert client.used() == 0
    assert client.ask(Message.CONFIG_READ) is Status.OK
    assert client.used() == 1


# Devices that fail


def test_completion_that_cannot_be_told_needs_a_reset(connect: Connect) -> None:
    """P6.6: also when the device completes later, outside of any message."""
    device = EchoDevice()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    client.unmap(RINGS + USED_AT)
    client.kernel.call_soon(device.release)
    client.pair.settle()
    assert [message["type"] for message in client.told] == [Message.CONFIG_CHANGED]
    assert client.told[0]["device_status"] & NEEDS_RESET
    assert client.server.state == "needs-reset"


class FailingDevice(EchoDevice):
    """An echo device with a fault in the places that a test names."""

    def __init__(self, *faults: str) -> None:
        super().__init__(queue_count=2)
        self.faults = set(faults)

    def _maybe(self, place: str) -> None:
        if place in self.faults:
            raise ZeroDivisionError(place)

    def config(self, byteorder: ByteOrder) -> bytes:
        self._maybe("config")
        return super().config(byteorder)

    def write_config(self, offset: int, data: bytes, byteorder: ByteOrder) -> None:
        self._maybe("write_config")
        super().write_config(offset, data, byteorder)

    def start(self, session: DeviceSession) -> None:
        self._maybe("start")
        super().start(session)

    def process(self, queue: DeviceQueue) -> None:
        super().process(queue)
        self._maybe(f"process {queue.index}")

    def handle(self, request: Request) -> None:
        self._maybe("handle")
        super().handle(request)


@pytest.mark.parametrize("fault", ["handle", "process 0"])
def test_device_that_fails_at_a_request_needs_a_reset(connect: Connect, fault: str) -> None:
    device = FailingDevice(fault)
    client = connect(device)
    client.negotiate()
    client.echo(b"AAAA")
    assert client.server.state == "needs-reset"
    assert client.told[-1]["device_status"] & NEEDS_RESET
    device.faults.clear()
    client.negotiate()
    assert client.echo(b"BBBB") == b"BBBB"


def test_device_that_fails_to_start_is_a_device_error_and_nothing_lives(connect: Connect) -> None:
    """P2.5."""
    device = FailingDevice("start")
    client = connect(device)
    client.negotiate(live=False)
    assert client.ask(Message.DRIVER_OK) is Status.DEVICE_ERROR
    assert (client.status & DRIVER_OK, client.live_queues, device.session) == (0, [], None)
    device.faults.clear()
    assert client.ask(Message.DRIVER_OK) is Status.OK
    assert client.echo(b"BBBB") == b"BBBB"


def test_message_that_trips_the_device_leaves_those_behind_it_alone(connect: Connect) -> None:
    """Of one burst: the failed message is answered DEVICE_ERROR, the rest is served."""
    device = FailingDevice()
    client = connect(device)
    client.negotiate()
    device.faults = {"config", "write_config"}
    client.crq.post(*encode(Message.CONFIG_READ, 1))
    client.crq.post(*encode(Message.CONFIG_WRITE, 1, offset=4, length=4, data=1 << 32))
    assert client.echo(b"behind") == b"behind"
    assert (client.server.state, device.written) == ("running", 0)


def test_exception_in_the_handler_of_a_message_strands_none_behind_it(connect: Connect) -> None:
    """Also one that the server does not catch by itself."""
    client = connect(EchoDevice())
    client.negotiate()
    handle = client.server.crq.inbox.on_message
    failures = [ZeroDivisionError("one"), ZeroDivisionError("two")]

    def trip(high: int, low: int) -> None:
        if failures:
            raise failures.pop()
        handle(high, low)

    client.server.crq.inbox.on_message = trip
    client.crq.post(*encode(Message.CONFIG_READ, 1))
    client.crq.post(*encode(Message.CONFIG_READ, 1))
    assert client.echo(b"behind") == b"behind"
    assert failures == []


# What one session leaves to the next


def test_cache_mode_of_a_session_without_queues_ends_with_it(connect: Connect) -> None:
    """P5.9: the device is where PROBE left it, also when it had no queue."""
    device = BlockDevice(Blank())
    client = connect(device)
    client.negotiate(0)
    assert client.ask(Message.CONFIG_WRITE, offset=blk.WRITEBACK_OFFSET, length=1, data=0) is Status.OK
    assert not device.writeback
    assert client.ask(Message.RESET) is Status.OK
    assert (device.writeback, device.session) == (True, None)


@pytest.mark.parametrize("end", [Message.RESET, Message.FAILED, Message.PROBE, None], ids=str)
def test_cache_mode_of_a_session_ends_with_it(connect: Connect, end: Message | None) -> None:
    """P1.4, P5.9, P5.10; None is the loss of the connection."""
    device = BlockDevice(Blank())
    client = connect(device)
    client.negotiate()
    assert client.ask(Message.CONFIG_WRITE, offset=blk.WRITEBACK_OFFSET, length=1, data=0) is Status.OK
    assert not device.writeback
    if end is None:
        client.crq.reset()
        client.pair.settle()
    elif end is Message.PROBE:
        client.probe()
    else:
        client.ask(end)
    assert (device.writeback, device.session) == (True, None)


def test_many_sessions_leak_no_memory_of_the_server(connect: Connect) -> None:
    client = connect(EchoDevice(queue_count=2))
    pages, window = client.kernel.pages, client.server._dma
    before = (pages.free_bytes, window.free_pages)
    for number in range(20):
        client.negotiate(2)
        assert client.echo(b"x", queue=number % 2) == b"x"
        client.ask(Message.QUEUE_RESET, queue=0)
        client.clear_ring(0)
        client.find_vqs(0)
        client.ask((Message.RESET, Message.FAILED, Message.SUSPEND)[number % 3])
        if number % 4 == 0:
            client.crq.reset()
            client.pair.settle()
    client.crq.close()
    client.pair.settle()
    assert (pages.free_bytes, window.free_pages) == before


@pytest.mark.parametrize("end", [Message.RESET, Message.PROBE, Message.FAILED, None], ids=str)
def test_cache_mode_written_before_driver_ok_ends_with_its_session(connect: Connect, end: Message | None) -> None:
    """P5.8 allows CONFIG_WRITE from FEATURES_OK on; the device is not started then, so never reset."""
    device = BlockDevice(Blank())
    client = connect(device)
    client.negotiate(live=False)
    assert client.ask(Message.CONFIG_WRITE, offset=blk.WRITEBACK_OFFSET, length=1, data=0) is Status.OK
    if end is None:
        client.crq.reset()
        client.pair.settle()
    elif end is Message.PROBE:
        client.probe()
    else:
        client.ask(end)
    assert device.writeback


def test_device_that_fails_to_suspend_is_not_left_paused(connect: Connect) -> None:
    """answered DEVICE_ERROR, state `running`, but every kick is dropped for ever."""

    class Device(EchoDevice):
        def suspend(self) -> None:
            raise ZeroDivisionError

    client = connect(Device())
    client.negotiate()
    assert client.ask(Message.SUSPEND) is Status.DEVICE_ERROR
    assert client.server.state == "needs-reset" or client.echo(b"on") == b"on"


def test_suspend_during_which_the_ring_breaks_is_not_answered_ok(connect: Connect) -> None:
    """device.suspend gives its buffers back, the used ring is gone: NEEDS_RESET, and SUSPEND is `OK`."""

    class Device(EchoDevice):
        def suspend(self) -> None:
            self.release()

    device = Device()
    client = connect(device)
    client.negotiate()
    device.hold = True
    client.echo(b"AAAA")
    client.unmap(RINGS + USED_AT)
    status = client.ask(Message.SUSPEND)
    assert client.status & NEEDS_RESET
    assert status is not Status.OK


class FailsToReset(EchoDevice):
    def reset(self) -> None:
        super().reset()
        raise ZeroDivisionError


def test_device_that_fails_to_reset_has_no_live_queue_left(connect: Connect) -> None:
    """RESET is answered DEVICE_ERROR with status DRIVER_OK; the dead queue's ring is still read."""
    client = connect(FailsToReset())
    client.negotiate()
    client.ask(Message.RESET)
    assert client.live_queues == []
    assert client.server.state != "running"


def test_device_that_fails_to_reset_does_not_keep_c001_unanswered(connect: Connect) -> None:
    """P1.2: C001 MUST be answered in any state."""
    client = connect(FailsToReset())
    client.negotiate()
    answers: list[int] = []
    client.crq._init = lambda code, number: answers.append(code)  # type: ignore[method-assign]
    client.port.send_crq(client.crq._unit_address, init_message(InitCode.INITIALIZE), 99)
    client.pair.settle()
    assert InitCode.INITIALIZATION_COMPLETE in answers
    assert (client.server.session, client.live_queues) == (None, [])


def test_flood_of_messages_does_not_make_the_passes_longer_and_longer(connect: Connect) -> None:
    """each drain of a full queue schedules another one although one is scheduled already."""
    client = connect(EchoDevice())
    client.negotiate()
    handled = [0]
    high, low = encode(Message.KICK, 1, queue=9)

    def flood(*message: int) -> None:
        handled[0] += 1
        client.port.send_crq(client.crq._unit_address, high, low)

    client.server.crq.inbox.on_message = flood
    client.port.send_crq(client.crq._unit_address, high, low)
    lengths, passes = [], []
    for _ in range(5):
        before = handled[0]
        client.kernel.poll()
        lengths.append(len(client.kernel._soon))
        passes.append(handled[0] - before)
    assert max(lengths) <= 2, lengths
    assert passes[-1] <= passes[1], passes


def test_requests_that_take_long_but_carry_little_are_bounded_in_a_pass(connect: Connect) -> None:
    """WRITE_ZEROES of 1 GiB costs 4 KiB of the allowance; so does FLUSH and a write without cache."""

    class Slow(Blank):
        zeroed = 0

        def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
            self.zeroed += length
            client.pair.clock.now += length / (1 << 30)  # a disk of 1 GiB/s

    disk = Slow()
    client = connect(BlockDevice(disk))
    client.negotiate(size=128)
    client.view[DATA : DATA + 16] = pack("<IIQ", blk.T_WRITE_ZEROES, 0, 0)
    for number in range(16):
        pack_into("<QII", client.view, DATA + 16 + 16 * number, 0, 1 << 17, 0)  # 64 MiB each
    for number in range(42):
        client.put((DATA, 16 + 256, 0), (DATA + 0x1000, 1, WRITE), head=3 * number)
    client.crq.post(*encode(Message.KICK, 1, queue=0, index=42))
    before = client.pair.clock.now
    client.kernel.poll()
    assert client.pair.clock.now - before <= 4.0, f"{disk.zeroed >> 30} GiB, {client.pair.clock.now - before} s"


def test_cut_off_of_an_old_connection_does_not_hit_the_next(connect: Connect) -> None:
    """overflow, stop, start in one pass: the cut-off that was scheduled resets the new registration."""
    client = connect(EchoDevice())
    client.negotiate()
    message = encode(Message.CONFIG_READ, 1)
    for _ in range(6):
        while client.port.send_crq(client.crq._unit_address, *message) == 0:
            pass
        client.kernel.dispatcher.take_interrupts()
    client.server.stop()
    client.server.start()
    ledger = client.pair.server_adapter.ledger
    registered = ledger.snapshot()["hcalls"]["H_REG_CRQ"]
    client.kernel.poll()
    assert ledger.snapshot()["hcalls"]["H_REG_CRQ"] == registered


def test_queue_reset_that_the_device_fails_changed_nothing_or_all(connect: Connect) -> None:
    """DEVICE_ERROR, the queue is gone, but `parts` hands it over with indices 0, 0."""

    class Device(EchoDevice):
        def queue_reset(self, index: int) -> None:
            raise ZeroDivisionError

    client = connect(Device())
    client.negotiate()
    client.echo(b"x")
    client.ask(Message.QUEUE_RESET, queue=0)
    assert client.server.session is not None
    assert sorted(client.server.session.queues) == client.live_queues
