"""The hypervisor's lock: one holder at a time, waits that others can end, signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from powervio.phyp.lock import HypervisorLock, new_lock

pytestmark = [pytest.mark.dual, pytest.mark.parametrize("make", [HypervisorLock, new_lock])]

PATIENCE = 20.0


class Interrupted(Exception):
    pass


def test_it_is_held_by_one_and_given_back(make: Callable[[], HypervisorLock]) -> None:
    lock = make()
    assert not lock.locked()
    assert lock.acquire()
    assert lock.locked()
    assert lock.acquire(False) is False
    lock.release()
    with lock:
        assert lock.locked()
        assert lock.acquire(False) is False
    assert not lock.locked()


def test_an_exception_gives_it_back(make: Callable[[], HypervisorLock]) -> None:
    lock = make()
    with pytest.raises(Interrupted), lock:
        raise Interrupted
    assert not lock.locked()


def test_many_threads_take_turns(make: Callable[[], HypervisorLock]) -> None:
    lock = make()
    inside = 0
    most = 0
    turns = 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(100):
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0)  # another thread runs into the lock
                turns += 1
                inside -= 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (turns, most) == (600, 1)
    assert not lock.locked()


def test_a_condition_sleeps_and_wakes_on_it(make: Callable[[], HypervisorLock]) -> None:
    lock = make()
    condition = threading.Condition(lock)  # type: ignore[arg-type]  # it asks for no more than there is
    said: list[str] = []

    def wait() -> None:
        with condition:
            assert condition.wait_for(lambda: said, PATIENCE)
            said.append("heard")

    thread = threading.Thread(target=wait, daemon=True)
    with condition:
        thread.start()
        assert not condition.wait(0.01)
    with condition:
        said.append("said")
        condition.notify_all()
    thread.join(PATIENCE)
    assert said == ["said", "heard"]
    assert not lock.locked()


def start_and_wait(thread: threading.Thread, lock: HypervisorLock) -> bool:
    thread.start()
    return lock.acquire()


@pytest.mark.parametrize("raises", [True, False])
def test_a_signal_ends_a_wait_if_its_handler_raises(make: Callable[[], HypervisorLock], raises: bool) -> None:
    lock = make()
    came = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        came.set()
        if raises:
            raise Interrupted

    def interrupt() -> None:
        time.sleep(0.02)  # the other is most likely asleep by then; if not, the outcome is the same
        signal.pthread_kill(main, signal.SIGUSR1)
        came.wait(PATIENCE)
        if not raises:
            lock.release()

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt, daemon=True)
    try:
        lock.acquire()
        if raises:
            with pytest.raises(Interrupted):
                start_and_wait(thread, lock)
        else:
            assert start_and_wait(thread, lock)
        thread.join(PATIENCE)
        assert came.is_set()
        assert lock.locked()
        lock.release()
        with lock:  # whoever gave up waiting is in nobody's way
            pass
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_who_gave_up_waiting_takes_no_turn_from_another(make: Callable[[], HypervisorLock]) -> None:
    lock = make()
    main = threading.get_ident()
    got = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def wait() -> None:
        with lock:
            got.set()

    def interrupt() -> None:
        time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    threads = [threading.Thread(target=target, daemon=True) for target in (wait, interrupt)]
    try:
        lock.acquire()
        threads[0].start()
        with pytest.raises(Interrupted):
            start_and_wait(threads[1], lock)
        assert not got.is_set()
        lock.release()
        assert got.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)
