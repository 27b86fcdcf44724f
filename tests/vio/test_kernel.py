"""The partition's kernel: timers, deferred calls, interrupts, threads and asyncio loops (vio/kernel.py)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from powervio.boot.waiting import wait
from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.clock import Clock
from powervio.vio.dispatcher import Timer
from powervio.vio.kernel import PartitionKernel

pytestmark = pytest.mark.dual

PATIENCE = 10.0


class Machine:
    """A hypervisor and one partition with an adapter, whose interrupt a test pulses."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.hypervisor = Hypervisor()
        self.partition = self.hypervisor.create_partition("vios1", 1 << 20)
        other = self.hypervisor.create_partition("client1", 1 << 20)
        self.adapter, _ = self.hypervisor.create_pair(self.partition, other)
        self.source = self.adapter.node.interrupt
        self.kernels: list[PartitionKernel] = []

    def kernel(self, clock: Callable[[], float] | None = None) -> PartitionKernel:
        """Of the partition; closed with the machine."""
        self.kernels.append(PartitionKernel(self.partition.port, clock=clock or self.clock))
        return self.kernels[-1]

    def threaded(self) -> PartitionKernel:
        """A kernel that runs in a thread of its own."""
        kernel = PartitionKernel(self.partition.port)
        self.kernels.append(kernel)
        kernel.start()
        return kernel

    def pulse(self) -> None:
        with self.hypervisor.lock:
            self.partition.interrupts.pulse(self.source)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    for kernel in made.kernels:
        kernel.close()
    made.hypervisor.close()


def fail() -> None:
    raise ZeroDivisionError("a fault of this handler")


# Timers


def test_timers_are_called_in_the_order_of_their_deadlines(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[str]()
    for name, delay in (("late", 3.0), ("soon", 1.0), ("same as soon", 1.0), ("middle", 2.0)):
        kernel.call_later(delay, lambda name=name: calls.append(name))  # type: ignore[misc]
    assert not kernel.poll()
    machine.clock.now += 0.999
    assert not kernel.poll()
    machine.clock.now += 1.5
    assert kernel.poll()
    assert calls == ["soon", "same as soon", "middle"]
    machine.clock.now += 1.0
    kernel.poll()
    assert calls[3:] == ["late"]
    assert kernel.next_deadline() is None


def test_timer_that_was_cancelled_is_never_called(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[str]()
    first = kernel.call_later(1.0, lambda: calls.append("first"))
    kernel.call_later(2.0, lambda: calls.append("second"))
    first.cancel()
    assert kernel.next_deadline() == machine.clock.now + 2.0
    machine.clock.now += 5.0
    kernel.poll()
    assert calls == ["second"]
    first.cancel()


def test_timer_may_cancel_one_that_is_due_at_the_same_time(machine: Machine) -> None:
    kernel, calls, timers = machine.kernel(), list[str](), list[Timer]()

    def cancel() -> None:
        timers[0].cancel()

    kernel.call_later(1.0, cancel)
    timers.append(kernel.call_later(1.0, lambda: calls.append("second")))
    machine.clock.now += 1.0
    kernel.poll()
    assert calls == []


def test_timer_that_starts_itself_again_is_called_once_a_period(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[float]()

    def again() -> None:
        calls.append(machine.clock.now)
        kernel.call_later(1.0, again)

    again()
    for _ in range(24):
        machine.clock.now += 0.125
        kernel.poll()
    assert calls == [1000.0, 1001.0, 1002.0, 1003.0]


# Deferred calls


def test_call_soon_runs_in_order_in_the_next_pass(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[str]()

    def first() -> None:
        calls.append("first")
        kernel.call_soon(lambda: calls.append("third"))

    kernel.call_soon(first)
    kernel.call_soon(lambda: calls.append("second"))
    assert kernel.poll()
    assert calls == ["first", "second"]  # what a call asks for waits, so that others have their turn
    assert kernel.poll()
    assert calls == ["first", "second", "third"]
    assert not kernel.poll()


def test_calls_from_other_threads_are_all_made_in_the_thread_of_the_partition(machine: Machine) -> None:
    kernel = machine.threaded()
    calls: list[tuple[int, int]] = []
    threads: set[int] = set()
    done = threading.Event()

    def call(caller: int, number: int) -> None:
        calls.append((caller, number))
        threads.add(threading.get_ident())
        if len(calls) == 400:
            done.set()

    def caller(name: int) -> None:
        for number in range(100):
            kernel.call_soon_threadsafe(lambda number=number: call(name, number))  # type: ignore[misc]

    workers = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert done.wait(PATIENCE)
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    for name in range(4):
        assert [number for who, number in calls if who == name] == list(range(100))


def test_call_from_another_thread_wakes_a_kernel_that_sleeps(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[str]()
    threading.Timer(0.05, lambda: kernel.call_soon_threadsafe(lambda: calls.append("woken"))).start()
    kernel.wait(PATIENCE)
    kernel.poll()
    assert calls == ["woken"]
    kernel.wait(0.0)  # the wake-up was taken: there is no second one


# call


def test_call_returns_what_the_function_returned_in_the_thread_of_the_partition(machine: Machine) -> None:
    kernel = machine.threaded()
    assert kernel.call(threading.get_ident) not in (threading.get_ident(), None)
    assert kernel.call(lambda: None) is None


def test_call_raises_what_the_function_raised_and_the_kernel_goes_on(machine: Machine) -> None:
    kernel = machine.threaded()
    with pytest.raises(ZeroDivisionError, match="a fault of this handler"):
        kernel.call(fail)
    assert kernel.call(lambda: 7) == 7


def test_call_that_takes_too_long_times_out_and_the_function_still_ends(machine: Machine) -> None:
    kernel = machine.threaded()
    release, ended = threading.Event(), threading.Event()

    def slow() -> None:
        release.wait(PATIENCE)
        ended.set()

    with pytest.raises(TimeoutError, match=r"partition vios1 did not answer within 0\.05 s"):
        kernel.call(slow, timeout=0.05)
    release.set()
    assert ended.wait(PATIENCE)
    assert kernel.call(lambda: 7) == 7


def test_call_is_direct_without_a_thread_and_in_the_thread_itself(machine: Machine) -> None:
    kernel = machine.kernel()
    assert kernel.call(threading.get_ident) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        kernel.call(fail)
    own = machine.threaded()
    assert own.call(lambda: own.call(lambda: 7)) == 7


# Interrupts


def test_handler_of_an_interrupt_is_called_before_and_after_its_end(machine: Machine) -> None:
    """papr-vio 3.4: a pulse that comes while the interrupt is accepted leaves no trace."""
    kernel, calls = machine.kernel(), list[str]()
    eoi = kernel.port.eoi

    def end(xirr: int) -> int:
        calls.append("eoi")
        return eoi(xirr)

    kernel.port.eoi = end  # type: ignore[method-assign]
    kernel.request_interrupt(machine.source, lambda: calls.append("handler"))
    machine.pulse()
    machine.pulse()
    assert kernel.poll()
    assert calls == ["handler", "eoi", "handler"]
    machine.pulse()
    assert kernel.poll()
    assert len(calls) == 6
    assert not kernel.poll()


def test_interrupt_without_a_handler_is_ended(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[str]()
    kernel.request_interrupt(machine.source, lambda: calls.append("handler"))
    kernel.free_interrupt(machine.source)
    kernel.free_interrupt(machine.source)
    machine.pulse()
    kernel.poll()
    kernel.request_interrupt(machine.source, lambda: calls.append("handler"))
    machine.pulse()
    kernel.poll()
    assert calls == ["handler"] * 2


def test_handler_that_raises_stops_nobody_else(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    kernel, calls = machine.kernel(), list[str]()
    kernel.request_interrupt(machine.source, fail)
    kernel.call_soon(fail)
    kernel.call_soon(lambda: calls.append("soon"))
    kernel.call_later(0.0, fail)
    kernel.call_later(0.0, lambda: calls.append("timer"))
    machine.pulse()
    with caplog.at_level(logging.ERROR):
        assert kernel.poll()
    assert calls == ["soon", "timer"]
    assert [record.getMessage() for record in caplog.records] == ["partition vios1: a handler failed"] * 4
    kernel.request_interrupt(machine.source, lambda: calls.append("interrupt"))
    machine.pulse()
    kernel.poll()
    assert calls[2:] == ["interrupt"] * 2  # the one that raised was ended all the same


# A thread of its own


def test_thread_sleeps_until_its_next_timer_and_ends_when_it_is_stopped(machine: Machine) -> None:
    kernel = machine.threaded()
    fired = threading.Event()
    kernel.call(lambda: kernel.call_later(0.02, fired.set))
    assert fired.wait(PATIENCE)
    thread = kernel._thread
    assert thread is not None
    assert kernel.stop()
    assert not thread.is_alive()
    assert kernel.stop()  # no thread: nothing to do
    kernel.start()
    assert kernel.call(lambda: 7) == 7


def test_thread_is_woken_by_an_interrupt(machine: Machine) -> None:
    kernel = machine.threaded()
    served = threading.Event()
    kernel.call(lambda: kernel.request_interrupt(machine.source, served.set))
    machine.pulse()
    assert served.wait(PATIENCE)


def test_stop_of_a_thread_that_hangs_says_so(machine: Machine) -> None:
    kernel = machine.threaded()
    release, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(PATIENCE)

    kernel.call_soon_threadsafe(hang)
    assert entered.wait(PATIENCE)
    thread = kernel._thread
    assert thread is not None
    assert not kernel.stop(0.01)
    release.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# Descriptors


def test_descriptor_is_read_while_the_kernel_waits_and_until_it_is_removed(machine: Machine) -> None:
    kernel, calls = machine.kernel(), list[bytes]()
    mine, other = os.pipe2(os.O_NONBLOCK)
    kernel.add_reader(mine, lambda: calls.append(os.read(mine, 1)))
    os.write(other, b"abc")
    assert not kernel.poll()
    kernel.wait(PATIENCE)
    kernel.wait(PATIENCE)
    assert calls == [b"a", b"b"]
    kernel.remove_reader(mine)
    kernel.remove_reader(mine)
    kernel.wait(0)
    assert calls == [b"a", b"b"]
    os.close(mine)
    os.close(other)


def test_thread_that_is_always_busy_reads_descriptors_too(machine: Machine) -> None:
    kernel, done = machine.threaded(), threading.Event()
    mine, other = os.pipe2(os.O_NONBLOCK)

    def busy() -> None:
        if not done.is_set():
            kernel.call_soon(busy)

    kernel.call(busy)
    kernel.call(lambda: kernel.add_reader(mine, done.set))
    os.write(other, b"a")
    assert done.wait(PATIENCE)
    kernel.call(lambda: kernel.remove_reader(mine))
    os.close(mine)
    os.close(other)


def test_loop_reads_descriptors_that_are_added_before_and_after_it_drives(machine: Machine) -> None:
    async def main() -> None:
        kernel = machine.kernel()
        pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
        done = [asyncio.Event() for _ in pipes]

        def reader(number: int) -> Callable[[], None]:
            def read() -> None:
                os.read(pipes[number][0], 1)
                kernel.call_soon(done[number].set)

            return read

        kernel.add_reader(pipes[0][0], reader(0))
        kernel.attach(asyncio.get_running_loop())
        kernel.add_reader(pipes[1][0], reader(1))
        for _, other in pipes:
            os.write(other, b"a")
        for event in done:
            await asyncio.wait_for(event.wait(), PATIENCE)
        kernel.remove_reader(pipes[1][0])
        kernel.detach()
        for _, other in pipes:
            os.write(other, b"b")
        await asyncio.sleep(0.02)
        assert [os.read(mine, 5) for mine, _ in pipes] == [b"b", b"b"]
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)

    asyncio.run(main())


# In an asyncio loop


def test_loop_drives_interrupts_timers_and_calls_until_detached(machine: Machine) -> None:
    calls: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        kernel = machine.kernel(loop.time)
        done = asyncio.Event()
        kernel.call_soon(lambda: calls.append("before"))
        kernel.attach(loop)
        assert calls == ["before"]
        kernel.request_interrupt(machine.source, lambda: calls.append("interrupt"))
        kernel.call_later(0.02, done.set)
        kernel.call_soon(lambda: calls.append("soon"))
        threading.Thread(target=lambda: kernel.call_soon_threadsafe(lambda: calls.append("thread"))).start()
        machine.pulse()
        await asyncio.wait_for(done.wait(), PATIENCE)
        while "thread" not in calls:
            await asyncio.sleep(0.001)
        assert sorted(calls[1:]) == ["interrupt", "interrupt", "soon", "thread"]
        del calls[:]
        kernel.call_later(0.01, lambda: calls.append("too late"))
        kernel.call_soon(lambda: calls.append("too late"))
        kernel.detach()
        kernel.detach()
        machine.pulse()
        await asyncio.sleep(0.03)
        assert calls == []
        kernel.poll()  # it is the caller's again
        assert sorted(calls) == ["interrupt", "interrupt", "too late", "too late"]

    asyncio.run(main())


def test_loop_learns_of_a_timer_that_is_earlier_than_the_one_it_sleeps_for(machine: Machine) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        kernel = machine.kernel(loop.time)
        kernel.attach(loop)
        kernel.call_later(60.0, fail)
        await asyncio.sleep(0)
        done = asyncio.Event()
        kernel.call_later(0.01, done.set)
        await asyncio.wait_for(done.wait(), PATIENCE)
        kernel.detach()

    asyncio.run(main())


def test_handler_that_detaches_the_kernel_is_the_last_one_of_the_loop(machine: Machine) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        kernel = machine.kernel(loop.time)
        kernel.attach(loop)
        kernel.call_soon(kernel.detach)
        await asyncio.sleep(0.01)
        assert kernel._loop is None
        assert kernel._loop_timer is None

    asyncio.run(main())


class Waker:
    """A loop that only notes what is asked of it."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.delays: list[float] = []
        self.readers: dict[int, Callable[[], object]] = {}

    def add_reader(self, fd: int, call: Callable[..., object], *arguments: object) -> None:
        self.readers[fd] = lambda: call(*arguments)

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        self.delays.append(delay)
        return Timer(delay, lambda: None)

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        raise NotImplementedError


def is_woken(kernel: PartitionKernel) -> bool:
    return bool(wait([kernel._wake_fd], [], 0)[0])


def test_loop_is_not_woken_by_what_is_asked_for_in_its_own_pass(machine: Machine) -> None:
    kernel, loop = machine.kernel(), Waker()
    woken: list[bool] = []

    def ask() -> None:
        kernel.call_soon_threadsafe(lambda: None)
        kernel.call_soon(lambda: None)
        kernel.call_later(1.0, lambda: None)
        woken.append(is_woken(kernel))
        other = threading.Thread(target=kernel.call_soon_threadsafe, args=(lambda: None,))
        other.start()
        other.join(PATIENCE)
        woken.append(is_woken(kernel))

    kernel.attach(loop)
    kernel.call_soon_threadsafe(ask)
    assert is_woken(kernel)
    loop.readers[kernel._wake_fd]()
    assert woken == [False, True]
    assert loop.delays == [0.0, 1.0], "it comes back for the calls, and for the timer"


def test_loop_keeps_its_timer_while_the_deadline_is_the_same(machine: Machine) -> None:
    kernel, loop = machine.kernel(), Waker()
    kernel.attach(loop)
    kernel.call_later(2.0, lambda: None)
    for _ in range(3):
        kernel.call_soon(lambda: None)
        loop.readers[kernel._wake_fd]()
    assert loop.delays == [2.0]
    kernel.call_later(1.0, lambda: None)
    loop.readers[kernel._wake_fd]()
    assert loop.delays == [2.0, 1.0]


def test_thread_of_the_partition_does_not_wake_itself(machine: Machine) -> None:
    kernel = machine.threaded()
    woken: list[bool] = []
    asked, done = threading.Event(), threading.Event()

    def ask() -> None:
        asked.wait(PATIENCE)
        kernel._unwake()
        kernel.call_soon_threadsafe(done.set)
        woken.append(is_woken(kernel))

    kernel.call_soon_threadsafe(ask)
    asked.set()
    assert done.wait(PATIENCE)
    assert woken == [False]


# The end


def open_files() -> set[str]:
    gc.collect()  # machines that other tests left have files too
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("threaded", [False, True])
def test_close_gives_back_every_file_descriptor(machine: Machine, threaded: bool) -> None:
    before = open_files()
    for _ in range(3):
        kernel = PartitionKernel(machine.partition.port)
        if threaded:
            kernel.start()
            kernel.call(lambda: None)
        kernel.close()
    assert open_files() == before


def test_close_of_an_attached_kernel_leaves_the_loop_alone(machine: Machine) -> None:
    async def main() -> None:
        before = open_files()
        kernel = PartitionKernel(machine.partition.port)
        kernel.attach(asyncio.get_running_loop())
        kernel.call_later(0.01, fail)
        kernel.close()
        assert open_files() == before
        await asyncio.sleep(0.02)

    asyncio.run(main())


def test_kernel_of_a_terminated_partition_takes_no_wake_up_of_another() -> None:
    """The hypervisor closes the line of the dead one; its number is the next partition's."""
    with Hypervisor() as hypervisor:
        dead = hypervisor.create_partition("dead", 1 << 20)
        kernel = PartitionKernel(dead.port)
        number = dead.port.interrupt_fd
        hypervisor.terminate(dead)
        born = hypervisor.create_partition("born", 1 << 20)
        assert born.port.interrupt_fd == number
        os.eventfd_write(born.port.interrupt_fd, 1)
        assert not kernel.poll()
        kernel.wait(0.0)
        assert os.eventfd_read(born.port.interrupt_fd) == 1
        kernel.close()
        os.eventfd_write(born.port.interrupt_fd, 1)  # closing took only its own
