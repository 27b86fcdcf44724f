"""What is over touches nothing: requests, rings, kicks and mappings of an ended queue or session (docs/protocol.md).

Both ends are ours here and honest; what a test calls late is what a slow device or a late driver would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import pack_into

import pytest

from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import RingMemory
from powervio.papr.codes import ReturnCode
from powervio.papr.tce import TCE_ACCESS
from powervio.testing.echo import ECHO_DEVICE_ID, EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.transport.crq.protocol import Message, encode
from powervio.vio.crq import CrqState
from powervio.vio.ranges import RangeExhausted
from powervio.virtio.driver import Driver
from powervio.virtio.queue import DeviceQueue, Request
from powervio.virtio.split_device import SplitDeviceRing


class CountingDevice(EchoDevice):
    """An echo device that counts its resets."""

    resets = 0

    def reset(self) -> None:
        super().reset()
        self.resets += 1


class OneByOneDevice(EchoDevice):
    """An echo device that takes one request when it is told of many."""

    def process(self, queue: DeviceQueue) -> None:
        request = queue.pop()
        if request is not None:
            self.handle(request)


Start = Callable[..., PartitionPair]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes running pairs."""
    made: list[PartitionPair] = []

    def make(device: EchoDevice, driver: Driver | None = None, *, revision: int = 1) -> PartitionPair:
        made.append(PartitionPair(device, driver or EchoDriver(), revision=revision).start())
        return made[-1]

    yield make
    for pair in made:
        pair.close()


def tell(pair: PartitionPair, kind: Message, **values: int) -> None:
    """A message of the client behind its driver's back."""
    pair.client.crq.post(*encode(kind, pair.client._number, **values))
    pair.settle()


def memory(pair: PartitionPair) -> bytes:
    """All of the client's memory."""
    return pair.client_partition.port.memory.tobytes()


def hold_one(pair: PartitionPair) -> Request:
    """Let the device have a request in its hands."""
    device, driver = pair.device, pair.driver
    assert isinstance(device, EchoDevice)
    assert isinstance(driver, EchoDriver)
    device.hold = True
    driver.send(b"held")
    pair.settle()
    return device.held[0]


def reset_queue(pair: PartitionPair) -> None:
    tell(pair, Message.QUEUE_RESET, queue=0)


def reset_queue_and_lose_the_connection(pair: PartitionPair) -> None:
    """The last queue is reset before: the device is reset all the same."""
    tell(pair, Message.QUEUE_RESET, queue=0)
    pair.client.reset()
    pair.settle()


def reset_device(pair: PartitionPair) -> None:
    pair.client.device_reset()
    pair.settle()


def give_up(pair: PartitionPair) -> None:
    tell(pair, Message.FAILED)


def lose_the_connection(pair: PartitionPair) -> None:
    pair.client.reset()
    pair.settle()


def stop_the_server(pair: PartitionPair) -> None:
    pair.server.stop()
    pair.settle()


ENDS = [
    reset_queue,
    reset_queue_and_lose_the_connection,
    reset_device,
    give_up,
    lose_the_connection,
    stop_the_server,
]


@pytest.mark.parametrize("end", ENDS)
def test_request_in_hand_of_an_ended_queue_reaches_the_client_no_more(
    start: Start, end: Callable[[PartitionPair], None]
) -> None:
    """P1.5, P5.9, P5.10, P5.11: neither data, status nor used ring; reading is refused too."""
    pair = start(CountingDevice())
    request = hold_one(pair)
    queue = request.queue
    end(pair)
    before = memory(pair)
    with pytest.raises(RemoteError, match="queue 0 was reset"):
        request.readable.read(0, 4)
    with pytest.raises(RemoteError, match="queue 0 was reset"):
        request.writable.write(0, b"late")
    request.complete(4)
    queue.flush()
    pair.settle()
    assert memory(pair) == before
    assert not queue.live


@pytest.mark.parametrize("end", ENDS)
def test_request_in_hand_of_an_ended_queue_is_forgotten_by_its_device(
    start: Start, end: Callable[[PartitionPair], None]
) -> None:
    """P5.9, P5.11."""
    device = CountingDevice()
    pair = start(device)
    request = hold_one(pair)
    end(pair)
    assert request not in device.held
    assert device.resets == (0 if end is reset_queue else 1)


def test_other_queue_goes_on_when_one_is_reset(start: Start) -> None:
    """P5.11."""
    device, driver = EchoDevice(queue_count=2), EchoDriver(queue_count=2)
    pair = start(device, driver)
    device.hold = True
    driver.send(b"zero", queue=0)
    driver.send(b"one", queue=1)
    pair.settle()
    tell(pair, Message.QUEUE_RESET, queue=0)
    device.release(1)
    pair.settle()
    assert driver.answers == [(b"one", b"one")]


def test_queue_that_was_set_up_again_is_not_touched_by_requests_of_the_one_before(start: Start) -> None:
    """P5.11: the same number and the same place, but another life."""
    pair = start(EchoDevice())
    request = hold_one(pair)
    queue = pair.client._queues[0]
    assert pair.client._handshake.block_memory is not None
    tell(pair, Message.QUEUE_RESET, queue=0)
    tell(pair, Message.FIND_VQS, count=1, length=32, address=pair.client._handshake.block_memory.ioba)
    assert list(pair.server._service.queues) == [0]
    before = bytes(queue.memory.used)
    request.complete(4)
    request.queue.flush()
    pair.settle()
    assert bytes(queue.memory.used) == before
    with pytest.raises(RemoteError):
        request.writable.write(0, b"late")


@pytest.mark.parametrize("end", ENDS)
def test_pop_of_an_ended_queue_gives_nothing_and_copies_nothing(
    start: Start, end: Callable[[PartitionPair], None]
) -> None:
    """P5.9, P5.11: the shadows have gone back to the server's memory, also with what was announced and not popped."""
    device, driver = OneByOneDevice(), EchoDriver()
    pair = start(device, driver)
    assert device.session is not None
    queue = device.session.queues[0]
    driver.send(b"one", b"two", b"three")
    pair.server_kernel.dispatcher.take_interrupts()  # without the passes that follow
    assert queue.ring.pending
    end(pair)
    copies: list[int] = []

    def copy_rdma(length: int, *panes: int) -> int:
        copies.append(length)
        return 0

    pair.server_partition.port.copy_rdma = copy_rdma  # type: ignore[assignment, method-assign]
    assert queue.pop() is None
    queue.flush()
    assert copies == []


def test_ring_of_the_driver_that_ended_writes_nothing_into_memory_that_was_given_back(start: Start) -> None:
    """A buffer that was added and not kicked when the session ended."""
    driver = RawDriver()
    driver.device_id = ECHO_DEVICE_ID  # type: ignore[misc]
    pair = start(EchoDevice(), driver)
    assert driver.transport is not None
    queue, buffer = pair.client._queues[0], driver._memory
    assert buffer is not None
    assert queue.add([(buffer, 0, 4)], [(buffer, 8, 4)], Exchange(buffer, 8, 4))
    where = queue.memory._memory.address
    pair.client.stop()
    pages = pair.client_kernel.pages
    again = pages.allocate(4096)
    assert again == where  # somebody else has it now
    queue.kick()
    queue.ring.disable_interrupts()
    assert not queue.ring.enable_interrupts()
    with pytest.raises(RemoteError):
        queue.reap()
    with pytest.raises(RemoteError):
        queue.add([(buffer, 0, 4)], [], Exchange(buffer, 8, 4))
    assert bytes(pages.memory[again : again + 4096]) == bytes(4096)


# Kicks that are kept back


def fill_queue_of_the_server(pair: PartitionPair) -> None:
    message = encode(Message.KICK, pair.client._number, queue=9)
    while pair.client_partition.port.send_crq(pair.client.node.unit_address, *message) == ReturnCode.H_SUCCESS:
        pass


def test_kick_that_was_kept_back_tells_only_what_was_published(start: Start) -> None:
    """P6.2: not the buffer that the driver has added since and will kick at the end of its batch."""
    driver = RawDriver()
    driver.device_id = ECHO_DEVICE_ID  # type: ignore[misc]
    pair = start(EchoDevice(), driver)
    fill_queue_of_the_server(pair)
    first = driver.send([b"one"], [3])  # this kick is kept back
    queue, buffer = pair.client._queues[0], driver._memory
    assert buffer is not None
    buffer.view[4096:4099] = b"two"
    second = Exchange(buffer, 8192, 3)
    assert queue.add([(buffer, 4096, 3)], [(buffer, 8192, 3)], second)
    kicks: list[int] = []
    port = pair.client_partition.port
    send = port.send_crq

    def send_crq(unit_address: int, high: int, low: int) -> int:
        kicks.append(high & 0xFFFF)
        return send(unit_address, high, low)

    port.send_crq = send_crq  # type: ignore[method-assign]
    pair.advance(1.0)
    assert kicks[-1] == 1
    assert (first.answer, first.times, second.times) == (b"one", 1, 0)
    queue.kick()
    pair.advance(1.0)
    assert (second.answer, second.times) == (b"two", 1)
    assert (pair.client.sessions, pair.server.state) == (1, "running")


@pytest.mark.parametrize("revision", [0, 1])
def test_kick_that_was_kept_back_is_forgotten_with_its_session(start: Start, revision: int) -> None:
    """P1.4: in revision 0 nothing else tells it from one of the next session."""
    device, driver = EchoDevice(queue_size=4), EchoDriver()
    pair = start(device, driver, revision=revision)
    sent = [b"m%d" % number for number in range(12)]  # two are in the ring, the others wait
    driver.send(*sent)
    pair.server_kernel.poll()  # the two are used, and the driver has not looked
    pair.client.device_reset()
    pair.server_kernel.poll()
    fill_queue_of_the_server(pair)
    # the reply to RESET ends the session: the last completions make room, but nothing is added or kicked
    port, kicks = pair.client_partition.port, []
    send = port.send_crq

    def send_crq(unit_address: int, high: int, low: int) -> int:
        if high >> 48 == 0x80 << 8 | Message.KICK:
            kicks.append(pair.client.state.value)
        return send(unit_address, high, low)

    port.send_crq = send_crq  # type: ignore[method-assign]
    pair.advance(2.0)
    assert set(kicks) == {"running"}
    assert sorted(driver.answers) == sorted((message, message) for message in sent)


# Mappings


def test_nothing_is_mapped_while_a_session_ends(start: Start) -> None:
    """P1.5: the last completions make room, but what waits is not given to a server that is gone."""
    driver = EchoDriver()
    pair = start(EchoDevice(queue_size=4), driver)
    driver.send(*[b"m%d" % number for number in range(12)])
    pair.server_kernel.poll()  # two are used; the driver has not looked
    mapped: list[int] = []
    port = pair.client_partition.port
    put_tce = port.put_tce

    def put(liobn: int, ioba: int, tce: int) -> int:
        if tce & TCE_ACCESS and pair.client.crq.state is not CrqState.OPEN:
            mapped.append(ioba)
        return put_tce(liobn, ioba, tce)

    port.put_tce = put  # type: ignore[method-assign]
    pair.server.stop()
    pair.settle()
    assert mapped == []
    assert len(driver.answers) == 2
    pair.server.start()
    pair.settle()
    assert len(driver.answers) == 12
    assert mapped == []


def test_segment_of_no_bytes_is_refused_and_the_window_stays_whole(start: Start) -> None:
    """Of a run without pages two others would get the same I/O address."""
    driver = EchoDriver()
    pair = start(EchoDevice(), driver)
    assert driver.transport is not None
    buffer = driver.transport.allocate(4096)
    space = pair.client._dma
    before = space.free_pages
    queue = pair.client._queues[0]
    for offset in (0, 100):
        with pytest.raises(LocalError):
            queue.add([(buffer, offset, 0)], [], 1)
    assert space.free_pages == before
    with pytest.raises(LocalError):
        driver.transport.allocate(0)
    given = {space.plan(0, 1, 3) for _ in range(before)}
    assert len(given) == before
    assert space.free_pages == 0
    with pytest.raises(RangeExhausted):
        space.plan(0, 1, 3)
    space.unmap_all([(ioba, 1) for ioba in given])
    assert space.free_pages == before


# The largest ring


class LargestRing(RingMemory):
    """Remote memory of a ring of 32768 entries that is never fetched late: the driver's and the shadow are one."""

    remote = True
    size = 32768

    def __init__(self) -> None:
        self.descriptors = memoryview(bytearray(16 * self.size))
        self.available = memoryview(bytearray(6 + 2 * self.size))
        self.used = memoryview(bytearray(6 + 8 * self.size))
        for index in range(self.size):
            pack_into("<QIHH", self.descriptors, 16 * index, 4096, 16, 0, 0)
            pack_into("<H", self.available, 4 + 2 * index, index)

    def fetch_available(self) -> None:
        pass

    def fetch_descriptors(self) -> None:
        pass

    def store_used(self, first: int, count: int) -> None:
        pass

    def store_suppression(self) -> None:
        pass

    def fetch_table(self, address: int, length: int) -> memoryview:
        raise NotImplementedError


@pytest.mark.parametrize("late", [1, 2, 32768])
def test_kick_from_a_whole_round_ago_is_not_news_in_the_largest_ring(late: int) -> None:
    """P6.3: 32768 buffers ago and 32768 buffers ahead are the same index."""
    memory = LargestRing()
    ring = SplitDeviceRing(memory.size, memory)
    for total in (memory.size, memory.size + 1):
        pack_into("<H", memory.available, 2, total & 0xFFFF)
        ring.refresh(total & 0xFFFF)
        while (chain := ring.pop()) is not None:
            ring.push(chain.head, 0)
        ring.publish()
    assert ring.refresh(late) == 0
    assert not ring.broken
    pack_into("<H", memory.available, 2, memory.size + 2)
    assert ring.refresh(memory.size + 2) == 1
