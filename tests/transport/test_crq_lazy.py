"""Lazy unmapping: what it saves, what it leaves mapped and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from powervio.papr.tce import TCE_ACCESS
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair

pytestmark = pytest.mark.dual

Make = Callable[..., PartitionPair]


@pytest.fixture
def make() -> Iterator[Make]:
    pairs: list[PartitionPair] = []

    def start(**options: bool) -> PartitionPair:
        pairs.append(PartitionPair(EchoDevice(), EchoDriver(), **options).start())  # type: ignore[arg-type]
        return pairs[-1]

    yield start
    for pair in pairs:
        pair.close()


def calls(pair: PartitionPair, requests: int) -> dict[str, int]:
    assert isinstance(pair.driver, EchoDriver)
    before = pair.client_adapter.ledger.snapshot()
    for number in range(requests):
        pair.driver.send(b"%d" % number)
        pair.settle()
    found: dict[str, int] = (pair.client_adapter.ledger.snapshot() - before)["hcalls"]
    return {name: count for name, count in found.items() if "TCE" in name and count}


def mapped(pair: PartitionPair) -> int:
    table = pair.client_adapter.table
    assert table is not None
    return sum(tce & TCE_ACCESS != 0 for tce in table.used().values())


def test_unmapping_is_one_call_for_many_requests(make: Make) -> None:
    # two buffers a request, mapped together; 64 stay mapped
    assert calls(make(), 66) == {"H_PUT_TCE_INDIRECT": 66, "H_STUFF_TCE": 66}
    assert calls(make(lazy_unmapping=True), 66) == {"H_PUT_TCE_INDIRECT": 66, "H_STUFF_TCE": 2}


def test_no_more_than_64_buffers_stay_mapped_and_none_after_the_session(make: Make) -> None:
    pair = make(lazy_unmapping=True)
    idle = mapped(pair)
    most = 0
    for _ in range(80):
        calls(pair, 1)
        most = max(most, mapped(pair))
    assert most == idle + 64
    free = pair.client._dma.free_pages
    pair.client.stop()
    assert mapped(pair) < idle
    assert pair.client._dma.free_pages > free


def test_full_window_takes_back_what_was_left_out_of_laziness(make: Make) -> None:
    pair = make(lazy_unmapping=True)
    assert isinstance(pair.driver, EchoDriver)
    calls(pair, 20)
    space = pair.client._dma
    held = [space.plan(0, 1, 1) for _ in range(space.free_pages)]
    assert space.free_pages == 0
    assert calls(pair, 20)["H_STUFF_TCE"] >= 1
    assert len(pair.driver.answers) == 40
    space.unmap_all([(ioba, 1) for ioba in held])
