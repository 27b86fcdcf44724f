"""One end of a Sub-CRQ: interrupts by H_VIOCTL, notifications, and what happens when it is freed (papr-vio 5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.clock import Clock
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.vio.outbox import Notification
from powervio.vio.subcrq import ElementReceiver, SubCrqEnd

KICK = (0x80 << 56, 0)


class Said(Notification):
    """Counts how often it was asked what is to be said."""

    asked = 0

    def build(self) -> None:
        self.asked += 1


def kick(key: int) -> Notification:
    return Notification(key, *KICK)


class End(ElementReceiver):
    """A CRQ end with one Sub-CRQ that keeps what it gets."""

    def __init__(self, partition: object, adapter: object, clock: Clock) -> None:
        self.kernel = PartitionKernel(partition.port, clock=clock)  # type: ignore[attr-defined]
        node = adapter.node  # type: ignore[attr-defined]
        dma = DmaSpace(self.kernel.port, self.kernel.pages, node.windows[0])
        self.messages: list[tuple[int, int]] = []
        self.crq = CrqEnd(
            self.kernel,
            node,
            dma,
            on_message=lambda high, low: self.messages.append((high, low)),
            on_open=lambda: None,
            on_lost=lambda: None,
        )
        self.got: list[tuple[int, int]] = []
        self.batches = 0
        self.sub = SubCrqEnd(self.kernel, node, dma, self.crq, self)

    def take(self, end: SubCrqEnd, high: int, low: int) -> None:
        assert end is self.sub
        self.got.append((high, low))

    def drained(self) -> None:
        self.batches += 1


class Two:
    """Both ends connected, polled in turn."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.hypervisor = Hypervisor()
        partitions = [self.hypervisor.create_partition(name, 4 << 20) for name in ("vios1", "client1")]
        adapters = self.hypervisor.create_pair(*partitions)
        self.server, self.client = (End(p, a, self.clock) for p, a in zip(partitions, adapters, strict=True))
        self.server.crq.register()
        self.client.crq.register()
        self.settle()
        assert self.server.sub.register() == self.client.sub.register() == ReturnCode.H_SUCCESS
        self.server.sub.partner = self.client.sub.cookie
        self.client.sub.partner = self.server.sub.cookie

    def settle(self) -> None:
        while self.server.kernel.poll() | self.client.kernel.poll():
            pass


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.server.kernel.close()
    made.client.kernel.close()
    made.hypervisor.close()


def test_notification_interrupts_and_is_handed_up_with_one_call_for_the_batch(two: Two) -> None:
    two.client.sub.signal(kick(1))
    two.client.sub.signal(kick(2))
    two.settle()
    assert (two.server.got, two.server.batches) == ([KICK] * 2, 1)


def test_more_than_one_pass_takes_is_taken_in_the_next(two: Two) -> None:
    for key in range(128):
        two.client.sub.signal(kick(key))
    two.settle()
    assert len(two.server.got) == 128


def test_full_queue_keeps_the_newest_for_each_key(two: Two) -> None:
    for key in range(128):
        two.client.sub.signal(kick(key))
    newest = Said(7, KICK[0], 1)
    for _ in range(5):
        two.client.sub.signal(newest)
    assert newest.asked == 1
    newest.low = 9
    two.settle()
    two.clock.now += 1.0
    two.settle()
    assert two.server.got[128:] == [(KICK[0], 9)]


def test_forgotten_notification_is_not_sent(two: Two) -> None:
    for key in range(129):
        two.client.sub.signal(kick(key))
    two.client.sub.forget_signal(128)
    two.settle()
    two.clock.now += 1.0
    two.settle()
    assert len(two.server.got) == 128


def test_partner_s_sub_crq_gone_the_notification_takes_the_crq(two: Two) -> None:
    """P5.18."""
    two.server.sub.free()
    two.client.sub.signal(kick(1))
    two.settle()
    assert (two.server.messages, two.client.sub.undeliverable) == ([KICK], 1)


def test_freed_end_sends_and_receives_nothing(two: Two) -> None:
    two.server.sub.signal(kick(1))
    two.client.sub.free()
    two.client.sub.signal(kick(1))
    two.settle()
    assert (two.client.got, two.server.got, two.server.messages) == ([], [], [])


def test_free_that_is_busy_is_repeated(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [ReturnCode.H_BUSY, ReturnCode.H_LONG_BUSY_ORDER_1_MSEC, ReturnCode.H_SUCCESS]
    monkeypatch.setattr(two.client.kernel.port, "free_sub_crq", lambda unit_address, cookie: codes.pop(0))
    two.client.sub.free()
    assert codes == []


def test_closed_crq_has_freed_it_already(two: Two) -> None:
    two.client.crq.close()
    two.client.sub.free()
    assert (two.client.sub.registered, two.client.crq.state) == (False, CrqState.CLOSED)
    adapter = two.hypervisor.partitions[2].adapters[two.client.crq._unit_address]
    assert "H_FREE_SUB_CRQ" not in adapter.ledger.snapshot()["hcalls"]
