"""What a hostile or broken VIO server can do to a client: it fails, gives back what it took, and tries the next server.

`Server` speaks the protocol by hand: it answers as an honest one does unless a test says otherwise (docs/protocol.md,
P1 to P6).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from powervio.drivers.block_core import BlockCore
from powervio.errors import LocalError, RemoteError
from powervio.papr.codes import ReturnCode
from powervio.papr.crq import InitCode, init_message
from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.echo import ECHO_DEVICE_ID, EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.protocol import (
    HEADERS,
    REPLY,
    DeviceHeader,
    Message,
    QueueAddresses,
    Status,
    decode,
    encode,
)
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk
from powervio.virtio import features as feature
from powervio.virtio.driver import Driver
from powervio.virtio.queue import DriverQueue, DriverTransport
from powervio.virtio.status import NEEDS_RESET

OFFER = feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.INDIRECT_DESC | feature.RING_RESET | feature.SUSPEND
HOUR = 3600.0


def disk_config(**values: int) -> bytes:
    return blk.pack_config(blk.BlockConfig(**{"capacity": 100, "blk_size": 512, **values}), "little")


def disk(queue_count: int = 1, queue_size: int = 16, config_length: int = 60) -> DeviceHeader:
    """The header of a disk that says how large its blocks are, and how many queues it has."""
    return DeviceHeader(
        device_type=blk.DEVICE_ID,
        queue_count=queue_count,
        queue_size=queue_size,
        device_features=OFFER | blk.F_BLK_SIZE | blk.F_MQ,
        config_length=config_length,
    )


def echo(queue_size: int = 16, config_length: int = 8) -> DeviceHeader:
    return DeviceHeader(
        device_type=ECHO_DEVICE_ID,
        queue_count=1,
        queue_size=queue_size,
        device_features=OFFER,
        config_length=config_length,
    )


class Server:
    """A server without a device; in front of a client end that is ours."""

    def __init__(self, driver: Driver, header: DeviceHeader, config: bytes) -> None:
        self.pair = PartitionPair(EchoDevice(), driver)
        self.client = self.pair.client
        self.header = header
        self.config = config
        self.status: dict[int, int] = {}
        """Status of the replies to some messages; 0 for others."""
        self.silent: set[int] = set()
        """Messages that are not answered."""
        self.heard: list[int] = []
        """Types of the client's messages."""
        self.rings: list[QueueAddresses] = []
        self.session = 0
        self._window = self.pair.server._window
        self._config_address = 0
        self.crq = self.pair.server.crq
        self.crq.inbox.on_message = self._hear
        self.crq._on_open = self.crq._on_lost = lambda: None
        self.after: dict[int, Callable[[], None]] = {}
        """What the server does after it has answered a message."""

    def start(self) -> Server:
        self.crq.register()
        self.client.start()
        self.pair.settle()
        return self

    def _hear(self, high: int, low: int) -> None:
        message = decode(high, low)
        kind, value = message["type"], 0
        self.heard.append(kind)
        if kind == Message.KICK or kind in self.silent:
            return
        if kind == Message.PROBE:
            self.session, value = message["session"], 1
            self._window.write(message["address"], HEADERS[1].pack(self.header))
        elif kind == Message.ACKNOWLEDGE:
            self._config_address = message["address"]
            assert message["length"] == self.header.config_length
        elif kind == Message.FIND_VQS:
            block = self._window.read(message["address"], message["length"])
            self.rings = [QueueAddresses.unpack(block[at : at + 32]) for at in range(0, len(block), 32)]
        if kind in (Message.ACKNOWLEDGE, Message.CONFIG_READ) and self.config:
            self._window.write(self._config_address, self.config)
        self.crq.post(*encode(kind | REPLY, self.session, status=self.status.get(kind, 0), value=value))
        if kind in self.after:
            self.after[kind]()

    def config_changed(self, device_status: int = 0) -> None:
        self.crq.post(*encode(Message.CONFIG_CHANGED, self.session, device_status=device_status))

    def use(self, head: int) -> None:
        """Tell that the device has used a buffer, the first of its ring."""
        ring = self.rings[0]
        self._window.write(ring.used + 4, head.to_bytes(4, "little") + bytes(4))
        self._window.write(ring.used + 2, (1).to_bytes(2, "little"))

    def replace(self) -> None:
        """This server goes, the next one comes to the same adapter."""
        self.crq.close()
        self.pair.settle()
        self.crq.register()
        self.pair.settle()
        self.pair.advance(1.0)

    @property
    def state(self) -> str:
        """Of the client end."""
        return self.client.state.value

    @property
    def free(self) -> tuple[int, int]:
        """Free memory of the client in bytes, free pages of its window."""
        return self.pair.client_kernel.pages.free_bytes, self.client._dma.free_pages


@pytest.fixture
def serve() -> Iterator[Callable[[Driver, DeviceHeader, bytes], Server]]:
    made: list[Server] = []

    def make(driver: Driver, header: DeviceHeader, config: bytes) -> Server:
        made.append(Server(driver, header, config))
        return made[-1]

    yield make
    for server in made:
        server.pair.close()


Serve = Callable[[Driver, DeviceHeader, bytes], Server]


def give_only(server: Server, pages: int) -> None:
    """Leave so many pages of memory to the client."""
    memory = server.pair.client_kernel.pages
    memory.allocate(memory.free_bytes - pages * 4096)


# Descriptions of a device that cannot be


@pytest.mark.parametrize(
    ("header", "config"),
    [
        (disk(), disk_config(blk_size=3)),
        (disk(), disk_config(blk_size=0)),
        (disk(), b"\xff" * 60),
        (disk(config_length=0), b""),
        (disk(config_length=7), bytes(7)),
    ],
    ids=["blk_size-3", "blk_size-0", "all-ones", "none", "short"],
)
def test_config_that_cannot_be_fails_and_the_next_server_is_used(
    serve: Serve, header: DeviceHeader, config: bytes
) -> None:
    """The client is not RUNNING with a driver that was not started; it tries again, but not for ever."""
    driver = BlockCore()
    server = serve(driver, header, config).start()
    assert server.state == "waiting"
    assert not driver.connected
    server.pair.advance(HOUR)
    assert server.state == "failed"
    assert server.client.sessions < 20
    server.header, server.config = disk(), disk_config()
    server.replace()
    assert (server.state, driver.connected) == ("running", True)


@pytest.mark.parametrize(
    "header",
    [
        DeviceHeader(device_type=2, queue_count=1, queue_size=16, device_features=OFFER),
        DeviceHeader(device_type=ECHO_DEVICE_ID, queue_count=0, queue_size=16, device_features=OFFER),
        DeviceHeader(device_type=ECHO_DEVICE_ID, queue_count=1, queue_size=0, device_features=OFFER),
        DeviceHeader(device_type=ECHO_DEVICE_ID, queue_count=1, queue_size=24, device_features=OFFER),
        DeviceHeader(device_type=ECHO_DEVICE_ID, queue_count=1, queue_size=16, device_features=0),
    ],
    ids=["type", "no-queue", "no-entries", "24-entries", "no-features"],
)
def test_header_that_cannot_be_fails_at_once_and_the_next_server_is_used(serve: Serve, header: DeviceHeader) -> None:
    driver = EchoDriver()
    server = serve(driver, header, b"").start()
    assert server.state == "failed"
    server.header, server.config = echo(), bytes(8)
    server.replace()
    assert (server.state, driver.starts) == ("running", 1)


def test_config_that_becomes_impossible_ends_the_session(serve: Serve) -> None:
    """P5.7, P5.14."""
    driver = BlockCore()
    server = serve(driver, disk(), disk_config()).start()
    assert driver.connected
    server.config = disk_config(blk_size=5)
    server.config_changed()
    server.pair.settle()
    assert (server.state, driver.connected) == ("waiting", False)
    assert "after CONFIG_READ" in server.client.failure


@pytest.mark.parametrize("pages", [4, 10, 20])
def test_device_that_is_too_large_for_the_client_leaks_nothing(serve: Serve, pages: int) -> None:
    """16 queues of 32768 entries: what was allocated when memory ran out is given back."""
    driver = BlockCore()
    server = serve(driver, disk(16, 32768), disk_config(num_queues=16))
    give_only(server, pages)
    server.start()
    server.pair.advance(HOUR)
    assert server.state == "failed"
    assert server.client._queues == []
    after_one = server.free
    for _ in range(3):
        server.replace()
        server.pair.advance(HOUR)
    assert server.free == after_one
    server.header, server.config = disk(queue_size=4), disk_config()
    server.replace()
    assert (server.state, driver.connected) == ("running", True)


def test_queue_of_the_largest_size_takes_a_bounded_part_of_the_client(serve: Serve) -> None:
    """P5.5: a size up to the header's; the client takes what it can afford."""
    server = serve(BlockCore(), disk(16, 32768), disk_config(num_queues=16)).start()
    assert server.state == "running"
    assert {ring.size for ring in server.rings} == {1024}


def test_config_longer_than_the_client_has_memory_leaves_it_as_it_was(serve: Serve) -> None:
    driver = EchoDriver()
    server = serve(driver, echo(config_length=65535), bytes(65535))
    give_only(server, 10)
    before = server.free
    server.start()
    server.pair.advance(HOUR)
    assert server.state == "failed"
    assert server.free == before
    server.header, server.config = echo(), bytes(8)
    server.replace()
    assert server.state == "running"


# Servers that do not answer, or only say what keeps a client busy


def test_c001_that_is_never_answered_is_repeated_every_10_seconds(serve: Serve) -> None:
    """P1.2: patience without an end, at a bounded rate."""
    server = serve(EchoDriver(), echo(), bytes(8))
    server.crq.register()
    server.client.start()
    sent: list[float] = []
    port = server.pair.client_partition.port
    send = port.send_crq

    def send_crq(unit_address: int, high: int, low: int) -> int:
        sent.append(server.pair.clock.now)
        return send(unit_address, high, low)

    port.send_crq = send_crq  # type: ignore[method-assign]
    kernel = server.pair.client_kernel
    for _ in range(600):  # the server's partition is never polled
        server.pair.clock.now += 1.0
        kernel.poll()
    assert 50 <= len(sent) <= 61
    assert len(kernel.dispatcher.timers) < 10


@pytest.mark.parametrize("kind", [Message.PROBE, Message.ACKNOWLEDGE, Message.FIND_VQS, Message.DRIVER_OK])
def test_message_that_is_never_answered_ends_the_connection_and_is_tried_again(serve: Serve, kind: Message) -> None:
    """P2.4: the client has a limit for the wait."""
    server = serve(EchoDriver(), echo(), bytes(8))
    server.silent = {kind}
    server.start()
    before = server.free
    server.pair.advance(600.0)
    assert f"did not answer {kind.name}" in server.client.failure
    assert 50 <= server.heard.count(kind) <= 61
    server.silent.clear()
    server.pair.advance(30.0)
    assert server.state == "running"
    assert server.free[0] <= before[0]


@pytest.mark.parametrize("status", [*list(Status)[1:], 99])
def test_error_status_of_any_step_fails_and_the_next_server_is_used(serve: Serve, status: int) -> None:
    """P2.5: other values are errors."""
    server = serve(EchoDriver(), echo(), bytes(8))
    server.status = {Message.FIND_VQS: status}
    server.start()
    server.pair.advance(HOUR)
    assert server.state == "failed"
    assert server.heard.count(Message.FIND_VQS) < 20
    server.status.clear()
    server.replace()
    assert server.state == "running"


def test_needs_reset_after_every_driver_ok_is_given_up(serve: Serve) -> None:
    """P5.14: one reset at once, then pauses that grow, then no more."""
    server = serve(EchoDriver(), echo(), bytes(8))
    server.after[Message.DRIVER_OK] = lambda: server.config_changed(NEEDS_RESET)
    server.start()
    assert server.heard.count(Message.DRIVER_OK) == 2
    server.pair.advance(HOUR)
    assert server.state == "failed"
    assert server.heard.count(Message.DRIVER_OK) < 20
    server.after.clear()
    server.replace()
    assert server.state == "running"


def test_flood_of_config_changed_is_answered_by_one_config_read(serve: Serve) -> None:
    """P5.7: a read that is under way brings what a later event tells of."""
    server = serve(EchoDriver(), echo(), bytes(8)).start()
    server.silent = {Message.CONFIG_READ}
    for _ in range(20):
        for _ in range(100):
            server.config_changed()
        server.pair.settle()
    assert server.heard.count(Message.CONFIG_READ) == 1
    assert list(server.client._replies.awaited) == [Message.CONFIG_READ]


@pytest.mark.parametrize("kind", [Message.USED, Message.CONFIG_CHANGED, Message.PROBE | REPLY, Message.RESET | REPLY])
@pytest.mark.parametrize("session", [0, 1, 9])
def test_message_that_nobody_asked_for_does_no_harm(serve: Serve, kind: int, session: int) -> None:
    """P1.4, P6.3."""
    driver = EchoDriver()
    server = serve(driver, echo(), bytes(8)).start()
    values = {"queue": 7, "index": 5} if kind == Message.USED else {}
    server.crq.post(*encode(kind, session, **values))
    server.pair.settle()
    assert (server.state, driver.starts, driver.stops) == ("running", 1, 0)


# Clients that had given up


class OtherDevice(EchoDevice):
    device_id = 62


@pytest.mark.parametrize("noticed", [True, False], ids=["open", "offering"])
def test_client_that_gave_up_tries_the_next_server(noticed: bool) -> None:
    """Also when the first server goes before it has answered the C001 with which the client listens for the next."""
    pair = PartitionPair(OtherDevice(), EchoDriver())
    pair.server.start()
    pair.client.start()
    for _ in range(100):
        if pair.client.failure:
            break
        pair.server_kernel.poll()
        pair.client_kernel.poll()
    if noticed:
        pair.settle()
    pair.server.stop()
    pair.settle()
    assert pair.client.state.value == "waiting"
    VirtioCrq(pair.server_kernel, pair.server_adapter.node, EchoDevice()).start()
    pair.settle()
    assert pair.client.state.value == "running"
    pair.close()


def test_client_that_gave_up_leaves_the_same_server_alone() -> None:
    pair = PartitionPair(OtherDevice(), EchoDriver()).start()
    probes = pair.steps.count("PROBE")
    pair.advance(HOUR)
    assert (pair.client.state.value, pair.steps.count("PROBE")) == ("failed", probes)
    pair.close()


def test_client_that_gave_up_tries_a_server_that_starts_anew() -> None:
    """P1.2: another C001 on the open connection."""
    device = OtherDevice()
    pair = PartitionPair(device, EchoDriver()).start()
    assert pair.client.state.value == "failed"
    pair.server.device = EchoDevice()
    pair.server._service.device = pair.server._configuration._device = pair.server.device
    pair.server.reset()
    pair.settle()
    assert pair.client.state.value == "running"
    pair.close()


# Sessions that end while the driver is busy


class Refuses(EchoDriver):
    """Cannot take completions at the end of its session."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False

    def completed(self, queue: DriverQueue) -> None:
        if self.refuses:
            raise LocalError("no memory for this completion")
        super().completed(queue)


@pytest.mark.parametrize("anew", [False, True], ids=["lost", "c001"])
def test_local_error_of_the_driver_at_the_end_of_a_session_ends_it_all_the_same(serve: Serve, anew: bool) -> None:
    """P1.3, P1.6."""
    driver = Refuses()
    server = serve(driver, echo(), bytes(8)).start()
    driver.send(b"x")
    server.pair.settle()
    free = server.free
    server.use(0)
    driver.refuses = True
    if anew:
        server.crq.reset()
    else:
        server.crq.close()
    server.pair.client_kernel.poll()
    assert (driver.stops, server.client._queues) == (1, [])
    driver.refuses = False
    if not anew:
        server.crq.register()
    server.pair.settle()
    assert (server.state, driver.starts) == ("running", 2)
    assert (driver.unfinished, server.free) == (1, free)


def test_request_that_waits_for_room_at_the_end_of_a_session_does_not_hinder_it(serve: Serve) -> None:
    """A ring of one entry holds no request of two segments; at the end the driver tries to place it once more."""
    driver = EchoDriver()
    server = serve(driver, echo(queue_size=1), bytes(8)).start()
    server.client._handshake._indirect = "never"
    driver._pending.append((b"x", 0))
    server.crq.close()
    server.pair.settle()
    assert (server.state, driver.stops) == ("waiting", 1)
    server.header = echo()
    server.crq.register()
    server.pair.settle()
    assert server.state == "running"


@pytest.mark.parametrize(
    "used",
    [
        (500).to_bytes(2, "little"),
        (0xFFFF).to_bytes(2, "little"),
    ],
)
def test_used_ring_that_cannot_be_at_the_end_of_a_session_ends_it_all_the_same(serve: Serve, used: bytes) -> None:
    """P1.6, virtio 1.4, 2.7.8."""
    driver = EchoDriver()
    server = serve(driver, echo(), bytes(8)).start()
    driver.send(b"x")
    server.pair.settle()
    server._window.write(server.rings[0].used + 2, used)
    server.replace()
    assert (server.state, driver.stops, driver.answers) == ("running", 1, [])
    assert driver.unfinished == 1


class FailsToStart(EchoDriver):
    """A driver that cannot live with any device."""

    def start(self, transport: DriverTransport) -> None:
        raise LocalError("no memory for the slots")


def test_driver_that_fails_to_start_is_not_running(serve: Serve) -> None:
    server = serve(FailsToStart(), echo(), bytes(8)).start()
    assert (server.state, server.client._session, server.client._queues) == ("waiting", None, [])
    assert "after DRIVER_OK: no memory for the slots" in server.client.failure
    server.pair.advance(HOUR)
    assert server.state == "failed"


def test_client_that_stops_while_the_server_takes_nothing_sends_nothing_later(serve: Serve) -> None:
    """P2.6: what is kept back belongs to the connection."""
    driver = EchoDriver()
    server = serve(driver, echo(), bytes(8)).start()
    port, unit_address = server.pair.client_partition.port, server.client.crq._unit_address
    while port.send_crq(unit_address, *encode(Message.KICK, 1, queue=9)) == ReturnCode.H_SUCCESS:
        pass
    driver.send(b"x")
    server.client.stop()
    assert (server.state, driver.stops) == ("closed", 1)
    server.pair.settle()
    server.heard.clear()
    server.pair.advance(60.0)
    assert server.heard == []
    server.client.start()
    server.pair.advance(1.0)
    assert server.heard[:2] == [Message.PROBE, Message.ACKNOWLEDGE]
    assert server.heard[-1] == Message.KICK  # of the new session, for what was not served
    assert server.heard.count(Message.KICK) == 1


def everything_free(server: object) -> set[int]:
    """All pages that the client's memory still gives out; each once, if nothing was freed twice."""
    pages = server.pair.client_kernel.pages  # type: ignore[attr-defined]
    count = pages.free_bytes // 4096
    given = [pages.allocate(4096) for _ in range(count)]
    assert len(set(given)) == len(given), "a page is given out twice"
    return set(given)


def test_config_that_does_not_fit_after_one_that_did_frees_nothing_twice(serve: Serve) -> None:
    """_config_memory is released, the larger allocation fails, and the old one is still named."""
    server = serve(EchoDriver(), echo(), bytes(8))
    give_only(server, 12)
    before = server.free
    server.start()
    assert server.state == "running"
    server.header = echo(config_length=65535)
    for _ in range(3):
        server.replace()
    server.pair.advance(HOUR)
    assert server.state == "failed"
    server.header, server.config = echo(config_length=60), bytes(60)
    server.replace()
    assert server.state == "running"
    server.client.stop()
    assert server.free[0] <= before[0]
    everything_free(server)


def test_block_that_does_not_fit_after_one_that_did_frees_nothing_twice(serve: Serve) -> None:
    """, the same in _find_vqs: _block_memory (a hostile server gets there with more than 128 queues)."""
    driver = EchoDriver()
    server = serve(driver, echo(queue_size=1), bytes(8)).start()
    assert server.state == "running"
    driver._queue_count = 200  # 6400 bytes: two pages
    server.header = echo(queue_size=1)
    server.header.queue_count = 200
    pages = server.pair.client_kernel.pages
    # room for the 200 rings (one page each) and one page more
    server.client.device_reset()
    pages.allocate(pages.free_bytes - 200 * 4096)
    server.replace()
    server.replace()
    driver._queue_count = 1
    server.header.queue_count = 1
    server.replace()
    server.client.stop()
    everything_free(server)


def test_driver_that_trips_over_the_device_is_not_running(serve: Serve) -> None:
    """only PowervioError is caught: a plain exception leaves RUNNING with a driver that never started."""

    class Driver(EchoDriver):
        def start(self, transport: DriverTransport) -> None:
            raise ValueError("no such config")

    server = serve(Driver(), echo(), bytes(8)).start()
    server.pair.advance(HOUR)
    assert server.state == "failed"


class Trips(EchoDriver):
    """A driver whose user's callback raises for completions of queue 0."""

    def completed(self, queue: DriverQueue) -> None:
        if queue.index == 0:
            raise ValueError("a callback of the user")
        super().completed(queue)


def test_exception_for_one_queue_strands_no_completion_of_another() -> None:
    """."""
    driver = Trips(queue_count=2)
    pair = PartitionPair(EchoDevice(queue_count=2), driver).start()
    driver.send(b"zero", queue=0)
    driver.send(b"one", queue=1)
    pair.settle()
    assert driver.answers == [(b"one", b"one")]
    pair.close()


@pytest.mark.parametrize("how", ["lost", "c001"])
def test_exception_at_the_end_of_a_session_ends_it_all_the_same(how: str) -> None:
    """P1.2: C001 is not answered, the state stays RUNNING without a session."""
    driver = Trips()
    pair = PartitionPair(EchoDevice(), driver).start()
    driver.send(b"zero")
    pair.settle()
    answers: list[int] = []
    pair.server.crq._init = lambda code, number: answers.append(code)  # type: ignore[method-assign]
    if how == "lost":
        pair.server.crq.close()
    else:
        pair.server_partition.port.send_crq(
            pair.server_adapter.node.unit_address, init_message(InitCode.INITIALIZE), 77
        )
    pair.client_kernel.poll()
    pair.server_kernel.poll()
    assert how == "lost" or InitCode.INITIALIZATION_COMPLETE in answers
    assert pair.client.state.value != "running"
    pair.close()


def test_memory_is_not_mapped_for_a_server_that_is_gone() -> None:
    """P1.5: allocate(mapped=True) reuses the ended ring's I/O address before the connection is open."""
    got: list[object] = []

    class Driver(EchoDriver):
        def stop(self) -> None:
            transport = self.transport
            super().stop()
            assert transport is not None
            try:
                got.append(transport.allocate(64, mapped=True).device_address)
            except (LocalError, RemoteError) as error:
                got.append(error)

    pair = PartitionPair(EchoDevice(), Driver()).start()
    old = pair.client._queues[0].memory._memory.ioba
    pair.server.stop()
    pair.settle()
    assert got != [old]
    assert isinstance(got[0], (LocalError, RemoteError))
    pair.close()


def test_config_that_changes_during_the_handshake_reaches_the_driver() -> None:
    """CONFIG_CHANGED between ACKNOWLEDGE and DRIVER_OK is ignored: the driver keeps the old capacity."""
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver)
    fetch = pair.server._configuration._fetch_features

    def change() -> None:
        fetch()
        device.counter = 99
        device.config_changed()

    pair.server._configuration._fetch_features = change  # type: ignore[method-assign]
    pair.start()
    assert driver.transport is not None
    assert driver.transport.config()[:4] == (99).to_bytes(4, "little")
    pair.close()


def test_call_after_close_writes_to_nobody_else() -> None:
    """the wake-up of a closed kernel goes to whoever has its number now; close twice closes it."""
    with Hypervisor() as hypervisor:
        kernel = PartitionKernel(hypervisor.create_partition("p", 1 << 20).port)
        numbers = {kernel._wake_fd, kernel._line_fd}
        kernel.close()
        others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        assert set(others) == numbers
        kernel.call_soon_threadsafe(lambda: None)
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
        kernel.close()
        for other in others:
            os.close(other)
