"""Both ends in threads of their own, resets at any moment: no lost wake-up, every message answered exactly once."""

from __future__ import annotations

import random
import time

import pytest

from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.driver_queue import IndirectPolicy


def run_client_until(pair: PartitionPair, done: int, driver: EchoDriver, limit: float = 20.0) -> None:
    """The client's partition runs in this thread, asleep when there is nothing to do."""
    end = time.monotonic() + limit
    while len(driver.answers) < done:
        if not pair.client_kernel.poll():
            pair.client_kernel.wait(0.5)
        assert time.monotonic() < end, f"{len(driver.answers)} of {done} answers, client {pair.client.state}"


def make(
    indirect: IndirectPolicy, *, event_idx: bool, revision: int = 1, packed: bool = False
) -> tuple[PartitionPair, EchoDriver]:
    driver = EchoDriver(queue_count=2)
    pair = PartitionPair(
        EchoDevice(queue_count=2),
        driver,
        revision=revision,
        indirect=indirect,
        event_idx=event_idx,
        packed=packed,
        clock=time.monotonic,
    )
    pair.server_kernel.start()
    pair.server_kernel.call(pair.server.start)
    pair.client.start()
    return pair, driver


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_ping_pong_between_threads_loses_no_wake_up(batch: int, event_idx: bool, packed: bool) -> None:
    pair, driver = make("auto", event_idx=event_idx, packed=packed)
    sent: list[bytes] = []
    for number in range(300):
        messages = [b"%d.%d" % (number, n) for n in range(batch)]
        sent += messages
        driver.send(*messages, queue=number % 2)
        run_client_until(pair, len(sent), driver)
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    pair.close()


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(1, 300), (2, 300), pytest.param(3, 20_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
@pytest.mark.parametrize(
    ("revision", "packed", "indirect"), [(0, False, "never"), (1, False, "always"), (1, True, "never")]
)
def test_resets_at_any_moment_lose_and_double_nothing(
    revision: int, packed: bool, indirect: IndirectPolicy, seed: int, rounds: int
) -> None:
    rng = random.Random(seed)
    pair, driver = make(indirect, event_idx=bool(revision), revision=revision, packed=packed)
    sent: list[bytes] = []
    for number in range(rounds):
        for queue in (0, 1):
            messages = [b"%d.%d.%d" % (number, queue, n) for n in range(rng.randrange(1, 32))]
            sent += messages
            driver.send(*messages, queue=queue)
        for _ in range(rng.randrange(0, 6)):
            pair.client_kernel.poll()
        disaster = rng.choice(("client", "server", "device", "none"))
        if disaster == "client":
            pair.client.reset()
        elif disaster == "server":
            pair.server_kernel.call_soon_threadsafe(pair.server.reset)
        elif disaster == "device":
            pair.client.device_reset()
        if number % 5 == 0:
            run_client_until(pair, len(sent), driver)
    run_client_until(pair, len(sent), driver)
    assert sorted(driver.answers) == sorted((message, message) for message in sent)
    assert pair.client.sessions > rounds // 20
    pair.close()
