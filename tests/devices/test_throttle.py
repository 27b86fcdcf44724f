"""Rate limits: buckets, and a block device whose requests wait for them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.throttle import Limits, TokenBucket
from powervio.drivers.block_core import BlockCore
from powervio.drivers.block_request import BlockRequest
from powervio.errors import LocalError
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import block as blk

from .test_block import MemoryBacking


class Call:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class ManualTimers:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fired = 0
        self._calls: list[tuple[float, int, Call]] = []
        self._order = count()

    @property
    def clock(self) -> Callable[[], float]:
        return lambda: self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Call:
        made = Call(call)
        heapq.heappush(self._calls, (self.now + delay, next(self._order), made))
        return made

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.call_later(0, call)

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        raise AssertionError("a disk waits for no descriptor")

    def remove_reader(self, fd: int) -> None:
        raise AssertionError("a disk waits for no descriptor")

    @property
    def armed(self) -> int:
        return sum(call.call is not None for _, _, call in self._calls)

    def advance(self, seconds: float, link: DirectLink) -> None:
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            at, _, due = heapq.heappop(self._calls)
            self.now = max(self.now, at)
            if due.call is not None:
                self.fired += 1
                due.call()
                link.run()
        self.now = end


class Limited:
    """A device with limits, a raw driver and a clock."""

    def __init__(self, limits: Limits, queues: int = 1) -> None:
        self.timers = ManualTimers()
        self.backing = MemoryBacking()
        self.device = BlockDevice(self.backing, BlockOptions(limits=limits, queues=queues))
        self.driver = RawDriver(queues=queues)
        self.link = DirectLink(self.device, self.driver)
        self.device.scheduler = self.timers
        self.link.connect()
        self.sent: list[Exchange] = []

    def send(self, kind: int, length: int = 0, queue: int = 0) -> Exchange:
        header = blk.REQUEST_HEADER["little"].pack(kind, 0, 0)
        readable = [header + bytes(length if kind == blk.T_OUT else 0)]
        exchange = self.driver.send(readable, [(length if kind == blk.T_IN else 0) + 1], queue)
        self.sent.append(exchange)
        return exchange

    def run(self) -> None:
        self.link.run()

    @property
    def done(self) -> int:
        assert all(exchange.times <= 1 for exchange in self.sent)
        return sum(exchange.times for exchange in self.sent)


@given(
    st.integers(1, 1000),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300)), min_size=1, max_size=40),
)
def test_bucket_never_gives_more_than_rate_and_burst_and_waits_no_longer_than_it_must(
    rate: int, burst: int, asked: list[tuple[float, int]]
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 0.0, 0
    for pause, cost in asked:
        now += pause
        wait = bucket.wait(cost, now)
        if wait:
            if wait > 1e-4:  # what is short by less than a grain of time may go
                assert bucket.wait(cost, now + wait * 0.9) > 0
            now += wait
            assert bucket.wait(cost, now) == 0
        # What was taken before this one fits; this one may go into debt once the bucket is full.
        assert taken + min(cost, burst) <= burst + rate * now + 1 + rate * 1e-5 * len(asked)
        bucket.take(cost)
        taken += cost


def test_requests_per_second_hold_after_the_burst() -> None:
    limited = Limited(Limits(requests_per_second=10, burst_requests=4))
    for _ in range(24):
        limited.send(blk.T_IN, 512)
    limited.run()
    assert limited.done == 4
    for expected in (14, 24):
        limited.timers.advance(1.0001, limited.link)
        assert limited.done == expected
    assert limited.timers.fired == 20  # one timer for each request, no polling
    counters = limited.device.counters
    assert (counters.throttled, counters.reads, limited.device.delayed) == (20, 24, 0)
    assert counters.throttled_seconds == pytest.approx(sum(0.1 * n for n in range(1, 21)), rel=0.01)
    assert limited.timers.armed == 0


def test_bytes_per_second_hold_for_requests_of_any_size() -> None:
    limited = Limited(Limits(bytes_per_second=100_000, burst_bytes=1000))
    for _ in range(10):
        limited.send(blk.T_OUT, 51_200)  # far more than the bucket holds
    limited.run()
    assert limited.done == 1
    limited.timers.advance(4.5, limited.link)
    assert limited.done == 9
    limited.timers.advance(0.2, limited.link)
    assert limited.done == 10


def test_flush_is_not_held_up_by_bytes() -> None:
    limited = Limited(Limits(bytes_per_second=1000, burst_bytes=512))
    for _ in range(3):
        limited.send(blk.T_OUT, 51_200)
    limited.run()
    flush = limited.send(blk.T_FLUSH)
    limited.run()
    assert flush.times == 1
    assert limited.done == 2


def test_full_queue_does_not_keep_another_waiting() -> None:
    limited = Limited(Limits(requests_per_second=10, burst_requests=1), queues=2)
    for _ in range(40):
        limited.send(blk.T_IN, 512)
    limited.run()
    late = [limited.send(blk.T_IN, 512, queue=1) for _ in range(3)]
    limited.run()
    limited.timers.advance(0.65, limited.link)
    assert limited.done == 7
    assert sum(exchange.times for exchange in late) == 3


def test_reset_gives_what_waits_back_to_the_driver_and_no_timer_is_left() -> None:
    driver = BlockCore()
    timers = ManualTimers()
    backing = MemoryBacking()
    device = BlockDevice(backing, BlockOptions(limits=Limits(requests_per_second=1)))
    link = DirectLink(device, driver)
    device.scheduler = timers
    link.connect()
    done: list[BlockRequest] = []
    memory = link.memory.allocate(4096)
    for at in range(5):
        driver.submit(BlockRequest(blk.T_OUT, at * 512, 512, ((memory, 0, 512),), done.append))
    driver.kick()
    link.run()
    assert (len(done), device.delayed, timers.armed) == (1, 4, 1)
    link.disconnect()
    assert (device.delayed, timers.armed, driver.pending) == (0, 0, 4)
    assert backing.calls.count("write") == 1
    link.connect()
    link.run()
    timers.advance(4.1, link)
    assert len(done) == 5
    assert all(request.error is None for request in done)
    assert backing.calls.count("write") == 5  # each once


def test_queue_that_was_reset_is_not_touched_any_more() -> None:
    limited = Limited(Limits(requests_per_second=1), queues=2)
    for queue in (0, 0, 0, 1, 1):
        limited.send(blk.T_OUT, 512, queue)
    limited.run()
    assert limited.done == 1
    limited.link.device_queues[0].live = False
    limited.device.queue_reset(0)
    assert limited.device.delayed == 2
    limited.timers.advance(10, limited.link)
    assert limited.backing.calls.count("write") == 3
    assert limited.device.delayed == 0


def test_malformed_requests_cost_a_request_and_are_answered() -> None:
    limited = Limited(Limits(requests_per_second=10, bytes_per_second=1000, burst_requests=2))
    short = limited.driver.send([b"short"], [1])
    no_status = limited.driver.send([bytes(16)], [])
    limited.run()
    assert short.answer == bytes([blk.S_IOERR])
    assert (short.times, no_status.times) == (1, 1)
    limited.send(blk.T_IN, 512)
    limited.run()
    assert limited.done == 0


def test_limits_need_timers_and_sensible_numbers() -> None:
    device = BlockDevice(MemoryBacking(), BlockOptions(limits=Limits(requests_per_second=1)))
    link = DirectLink(device, RawDriver())
    device.scheduler = None
    with pytest.raises(LocalError, match="timers"):
        link.connect()
    for wrong in ({"bytes_per_second": 0}, {"burst_requests": 5}, {"requests_per_second": 1, "burst_requests": 0}):
        with pytest.raises(LocalError):
            Limits(**wrong)


# Over CRQ


def crq(limits: Limits) -> tuple[PartitionPair, BlockCore, BlockDevice, list[BlockRequest]]:
    device, driver = BlockDevice(MemoryBacking(), BlockOptions(limits=limits)), BlockCore()
    pair = PartitionPair(device, driver).start()
    done: list[BlockRequest] = []
    assert driver._transport is not None
    memory = driver._transport.allocate(4096)
    for at in range(6):
        driver.submit(BlockRequest(blk.T_OUT, at * 512, 512, ((memory, 0, 512),), done.append))
    driver.kick()
    pair.settle()
    return pair, driver, device, done


def test_over_crq_the_partitions_timer_lets_requests_go() -> None:
    pair, _, device, done = crq(Limits(requests_per_second=10, burst_requests=1))
    assert (len(done), device.delayed) == (1, 5)
    pair.advance(0.251)
    assert len(done) == 3
    pair.advance(1.0)
    assert (len(done), device.delayed) == (6, 0)
    pair.close()


def test_over_crq_a_reset_of_the_server_loses_and_doubles_nothing() -> None:
    pair, driver, device, done = crq(Limits(requests_per_second=10, burst_requests=1))
    pair.server.reset()
    pair.settle()
    pair.advance(20.0)
    assert len(done) == 6
    assert all(request.error is None for request in done)
    assert driver.resubmitted == 5
    assert device.counters.writes == 6
    pair.close()


def test_over_crq_suspend_does_not_wait_for_the_limits() -> None:
    pair, _, device, done = crq(Limits(requests_per_second=1, burst_requests=1))
    outcome: list[object] = []
    pair.client.suspend(outcome.append)
    pair.settle()  # no time passes
    assert outcome == [None]
    assert (len(done), device.delayed) == (6, 0)
    assert pair.server.session is not None
    assert not pair.server.session.status.running
    pair.close()
