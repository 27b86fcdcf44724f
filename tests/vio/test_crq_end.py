"""The CRQ connection table and reliable posting (papr-vio 3.5-3.7, docs/protocol.md P1)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from powervio.papr.codes import ReturnCode
from powervio.papr.crq import InitCode, init_message
from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.clock import Clock
from powervio.vio.crq import TRANSITIONS, Action, CrqEnd, CrqState, Input
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.vio.outbox import Notification

MESSAGE = 0x8001_0000_0000_0000


class End:
    """A CRQ end that writes down what happens to it."""

    def __init__(self, partition: object, adapter: object, clock: Clock) -> None:
        self.kernel = PartitionKernel(partition.port, clock=clock)  # type: ignore[attr-defined]
        node = adapter.node  # type: ignore[attr-defined]
        self.unit_address = node.unit_address
        self.log: list[str] = []
        self.messages: list[tuple[int, int]] = []
        self.crq = CrqEnd(
            self.kernel,
            node,
            DmaSpace(self.kernel.port, self.kernel.pages, node.windows[0]),
            on_message=lambda high, low: self.messages.append((high, low)),
            on_open=lambda: self.log.append("open"),
            on_lost=lambda: self.log.append("lost"),
        )


class Two:
    """Both ends, polled in turn."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.clock = Clock()
        self.hypervisor = hypervisor
        self.server_partition = hypervisor.create_partition("vios1", 4 << 20)
        self.client_partition = hypervisor.create_partition("client1", 4 << 20)
        server, client = hypervisor.create_pair(self.server_partition, self.client_partition)
        self.server = End(self.server_partition, server, self.clock)
        self.client = End(self.client_partition, client, self.clock)

    def settle(self) -> None:
        while self.server.kernel.poll() | self.client.kernel.poll():
            pass

    def states(self) -> tuple[CrqState, CrqState]:
        return self.server.crq.state, self.client.crq.state

    def close(self) -> None:
        self.server.kernel.close()
        self.client.kernel.close()


@pytest.fixture
def two() -> Iterator[Two]:
    with Hypervisor() as hypervisor:
        ends = Two(hypervisor)
        yield ends
        ends.close()


BOTH_OPEN = (CrqState.OPEN, CrqState.OPEN)


def test_table_answers_every_initialize_and_opens_only_once() -> None:
    for (state, happened), (_, actions) in TRANSITIONS.items():
        if happened is Input.INITIALIZE:
            assert Action.ANSWER in actions
        if state is CrqState.OPEN and Action.OPENED in actions:
            assert actions.index(Action.LOST) < actions.index(Action.ANSWER) < actions.index(Action.OPENED)


def test_register_alone_waits_for_the_partner(two: Two) -> None:
    two.server.crq.register()
    two.settle()
    assert two.server.crq.state is CrqState.WAITING
    two.client.crq.register()
    two.settle()
    assert two.states() == BOTH_OPEN
    assert two.server.log == two.client.log == ["open"]


def test_crossing_initialize_opens_both_ends_once(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    # the client's own C001 was delivered; a second one from the server crosses it
    two.server_partition.port.send_crq(two.server.unit_address, init_message(InitCode.INITIALIZE), 0)
    two.settle()
    assert two.states() == BOTH_OPEN
    assert two.server.log == ["open"]
    assert two.client.log[-1] == "open"


def test_message_before_the_handshake_is_dropped_and_counted(two: Two) -> None:
    two.client.crq.register()
    two.server.crq.register()
    two.client_partition.port.send_crq(two.client.unit_address, MESSAGE, 1)
    two.server.kernel.poll()
    assert (two.server.messages, two.server.crq.strays) == ([], 1)


def test_partner_that_frees_its_queue_ends_the_connection_and_may_come_back(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    two.client.crq.close()
    two.settle()
    assert two.server.crq.state is CrqState.WAITING
    assert two.server.log == ["open", "lost"]
    two.client.crq.register()
    two.settle()
    assert two.states() == BOTH_OPEN
    assert two.server.log == ["open", "lost", "open"]


def test_reset_by_both_at_once_settles_with_an_open_connection(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    two.client.crq.reset()
    two.server.crq.reset()
    two.settle()
    assert two.states() == BOTH_OPEN


def test_partner_terminated_ends_the_connection(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    two.hypervisor.terminate(two.client_partition)
    two.server.kernel.poll()
    assert two.server.log == ["open", "lost"]


def test_register_over_a_stale_registration_frees_it_first(two: Two) -> None:
    """A crash kernel finds the queue of the kernel before it still registered (papr-vio 3.5)."""
    two.client.crq.register()
    two.client.crq.state = CrqState.CLOSED  # what a kernel that died forgot to do
    two.client.crq.register()
    two.server.crq.register()
    two.settle()
    assert two.states() == BOTH_OPEN


def test_post_to_a_full_queue_arrives_later_in_order(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    for number in range(300):
        two.client.crq.post(MESSAGE, number)
    two.settle()
    assert len(two.server.messages) == 256
    two.clock.now += 0.2
    two.settle()
    assert [low for _, low in two.server.messages] == list(range(300))


class Newest(Notification):
    """Tells how far something is."""

    def __init__(self, state: list[int]) -> None:
        super().__init__(5, MESSAGE)
        self.state = state

    def build(self) -> None:
        self.low = 1000 + self.state[0]


def test_signal_to_a_full_queue_is_sent_once_with_the_newest_state(two: Two) -> None:
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    port = two.client_partition.port
    while port.send_crq(two.client.unit_address, MESSAGE, 0) == ReturnCode.H_SUCCESS:
        pass
    state = [0]
    for _ in range(10):
        state[0] += 1
        two.client.crq.outbox.signal(Newest(state))
    two.settle()
    two.server.messages.clear()
    two.clock.now += 0.2
    two.settle()
    assert two.server.messages == [(MESSAGE, 1010)]


def test_what_a_busy_hypervisor_did_not_take_is_sent_again_in_order(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """H_BUSY: a hypervisor in another process did not answer in time, and will not carry the call out (G5.10)."""
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    port = two.client_partition.port
    tried: list[int] = []

    def busy(unit_address: int, high: int, low: int) -> int:
        tried.append(low)
        return ReturnCode.H_BUSY

    with monkeypatch.context() as patch:
        patch.setattr(port, "send_crq", busy)
        two.client.crq.post(MESSAGE, 1)
        two.client.crq.outbox.signal(Notification(5, MESSAGE, 2))
        two.client.crq.post(MESSAGE, 3)
        assert tried == [1], "what comes behind is not tried before it"
        two.clock.now += 0.01
        two.settle()
        assert tried == [1, 1]
    two.settle()
    assert two.server.messages == []
    two.clock.now += 0.2
    two.settle()
    assert two.server.messages == [(MESSAGE, 1), (MESSAGE, 2), (MESSAGE, 3)]
    assert not two.client.crq.backlogged


def test_partner_that_never_empties_its_queue_is_cut_off(two: Two) -> None:
    """P2.6."""
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    for number in range(600):
        two.client.crq.post(MESSAGE, number)
    two.client.kernel.poll()
    assert two.client.crq.state is not CrqState.OPEN
    two.settle()
    two.clock.now += 0.2
    two.settle()
    assert two.states() == BOTH_OPEN


def test_flood_of_the_partner_leaves_room_for_others(two: Two) -> None:
    """One pass handles a bounded number of elements, then the rest of the partition has a turn."""
    two.server.crq.register()
    two.client.crq.register()
    two.settle()
    port = two.client_partition.port
    turns: list[int] = []

    def flood(high: int, low: int) -> None:
        turns.append(low)
        port.send_crq(two.client.unit_address, MESSAGE, 0)

    two.server.crq.inbox.on_message = flood
    port.send_crq(two.client.unit_address, MESSAGE, 0)
    two.server.kernel.dispatcher.take_interrupts()
    assert 0 < len(turns) <= 64 * 2 * 256
