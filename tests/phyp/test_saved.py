"""A suspended partition that goes on under another hypervisor: its numbers, its TCEs, its queue, its interrupts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest
from tests.phyp.conftest import PAGE, Rig, make_rig

from powervio.errors import LocalError
from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.policy import Policy
from powervio.phyp.saved import PartitionState, SavedQueue, restore_partition, save_partition
from powervio.phyp.vterm import create_vterm, remove_vterm
from powervio.vio.slots import CrqSlots

pytestmark = pytest.mark.dual

SUSPENDED = (0xFF06 << 48, 0)
MESSAGE = 0x80 << 56


@dataclasses.dataclass
class Elsewhere:
    """Another managed system with a server of its own, and partitions that came before."""

    hypervisor: Hypervisor
    server: Partition

    def receive(self, state: PartitionState, memory: bytes) -> Rig:
        """The partition with its adapters, not run yet."""
        client = self.hypervisor.create_partition(state.name, state.memory)
        client.memory[:] = memory
        for saved in state.adapters:
            ends = self.hypervisor.create_pair(
                self.server,
                client,
                server_window=16 * PAGE,
                client_window=saved.window,
                client_slot=saved.slot,
                client_identity=saved.identity,
            )
        restore_partition(client, state)
        return Rig(self.hypervisor, self.server, client, *ends)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Hypervisor() as hypervisor:
        server = hypervisor.create_partition("other-server", 16 * PAGE)
        hypervisor.create_pair(server, hypervisor.create_partition("stranger", 16 * PAGE))
        yield Elsewhere(hypervisor, server)


def suspended(rig: Rig) -> tuple[PartitionState, bytes]:
    rig.hypervisor.suspend(rig.client)
    return save_partition(rig.client), bytes(rig.client.memory)


def serve_again(rig: Rig) -> None:
    for page in range(16):
        assert rig.s.put_tce(rig.local, page * PAGE, page * PAGE | 3) == 0
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == 0


def test_restored_partition_goes_on_with_what_it_knew(linked: Rig, elsewhere: Elsewhere) -> None:
    linked.client.memory[5 * PAGE : 5 * PAGE + 8] = b"payload!"
    assert linked.c.vio_signal(linked.c_ua, 1) == 0
    slots = CrqSlots(linked.client.memory[:PAGE])
    for _ in range(255):  # so that the place in the queue has come round
        assert linked.s.send_crq(linked.s_ua, MESSAGE, 0) == 0
        assert slots.next() == (MESSAGE, 0)
    os.eventfd_read(linked.c.interrupt_fd)
    linked.c.eoi(linked.c.xirr())
    rig = elsewhere.receive(*suspended(linked))
    assert (rig.window, rig.c_ua, rig.client_end.interrupt) == (linked.window, linked.c_ua, linked.client_end.interrupt)
    serve_again(rig)
    assert rig.s.send_crq(rig.s_ua, MESSAGE, 1) == ReturnCode.H_CLOSED
    with pytest.raises(BlockingIOError):
        os.eventfd_read(rig.c.interrupt_fd)
    rig.hypervisor.resume(rig.client)
    os.eventfd_read(rig.c.interrupt_fd)
    assert rig.c.xirr() & 0xFF_FFFF == linked.client_end.interrupt
    high, low = rig.client.memory[255 * 16 : 255 * 16 + 8], rig.client.memory[255 * 16 + 8 : 256 * 16]
    assert (int.from_bytes(high, "big"), int.from_bytes(low, "big")) == SUSPENDED
    assert rig.c.enable_crq(rig.c_ua) == 0
    assert rig.s.send_crq(rig.s_ua, MESSAGE, 1) == 0
    assert rig.client.memory[0] == 0x80  # the slot after the last one is the first
    assert rig.s.copy_rdma(8, rig.remote, 5 * PAGE, rig.local, 9 * PAGE) == 0
    assert bytes(rig.server.memory[9 * PAGE : 9 * PAGE + 8]) == b"payload!"


def test_restored_partition_gets_numbers_that_are_free_for_later_adapters(linked: Rig, elsewhere: Elsewhere) -> None:
    linked.hypervisor.create_pair(linked.server, linked.client)
    rig = elsewhere.receive(*suspended(linked))
    _, later = rig.hypervisor.create_pair(rig.server, rig.client)
    assert len(rig.client.panes) == 3
    assert len(rig.client.sources) == sum(len(adapter.sources) for adapter in rig.client.adapters.values())
    assert later.window.liobn not in [adapter.panes[0].liobn for adapter in linked.client.adapters.values()]


def test_restored_partition_has_its_interrupts_where_they_were(linked: Rig, elsewhere: Elsewhere) -> None:
    linked.c.vio_signal(linked.c_ua, 1)
    assert linked.s.send_crq(linked.s_ua, MESSAGE, 0) == 0
    taken = linked.c.xirr()  # accepted, not ended
    rig = elsewhere.receive(*suspended(linked))
    rig.hypervisor.resume(rig.client)
    assert rig.c.xirr() & 0xFF_FFFF == 0  # the priority of what was accepted holds others back
    assert rig.c.eoi(taken) == 0
    serve_again(rig)
    assert rig.c.enable_crq(rig.c_ua) == 0
    assert rig.s.send_crq(rig.s_ua, MESSAGE, 0) == 0
    assert rig.c.xirr() & 0xFF_FFFF == rig.client_end.interrupt


def test_restored_partition_that_watched_its_tree_hears_of_the_move(linked: Rig, elsewhere: Elsewhere) -> None:
    linked.c.watch_tree()
    rig = elsewhere.receive(*suspended(linked))
    rig.hypervisor.resume(rig.client)
    assert rig.c.xirr() & 0xFF_FFFF == rig.c.tree_source


def test_restored_tces_give_the_partner_what_they_gave_before_and_no_more(linked: Rig, elsewhere: Elsewhere) -> None:
    linked.c.put_tce(linked.window, 3 * PAGE, 7 * PAGE | 1)  # for reading, and elsewhere
    linked.c.put_tce(linked.window, 4 * PAGE, 0)
    rig = elsewhere.receive(*suspended(linked))
    serve_again(rig)
    rig.hypervisor.resume(rig.client)
    rig.c.enable_crq(rig.c_ua)
    rig.client.memory[7 * PAGE] = 0x77
    assert rig.s.copy_rdma(1, rig.remote, 3 * PAGE, rig.local, PAGE) == 0
    assert rig.server.memory[PAGE] == 0x77
    assert rig.s.copy_rdma(1, rig.local, PAGE, rig.remote, 3 * PAGE) != 0
    assert rig.s.copy_rdma(1, rig.remote, 4 * PAGE, rig.local, PAGE) != 0
    assert rig.client_end.table is not None
    assert linked.client_end.table is not None
    assert rig.client_end.table.used() == linked.client_end.table.used()


def test_a_terminal_keeps_its_numbers_and_can_be_unplugged(linked: Rig, elsewhere: Elsewhere) -> None:
    _, vty = create_vterm(linked.hypervisor, linked.server, linked.client)
    state, memory = suspended(linked)
    client = elsewhere.hypervisor.create_partition("client", state.memory)
    client.memory[:] = memory
    first, second = sorted(state.adapters, key=lambda saved: saved.window)
    vty_server, again = create_vterm(
        elsewhere.hypervisor, elsewhere.server, client, client_slot=first.slot, client_identity=first.identity
    )
    elsewhere.hypervisor.create_pair(
        elsewhere.server,
        client,
        client_window=second.window,
        client_slot=second.slot,
        client_identity=second.identity,
    )
    restore_partition(client, state)
    assert (again.slot, again.interrupt) == (vty.slot, vty.interrupt)
    slots = sorted(elsewhere.server.slots)
    remove_vterm(vty_server, again)
    remove_vterm(vty_server, again)
    assert again.slot not in client.slots
    assert sorted(elsewhere.server.slots) == [slot for slot in slots if slot != vty_server.slot]
    assert vty_server.candidates() == []


def test_what_cannot_be_saved_is_told(linked: Rig) -> None:
    with pytest.raises(LocalError, match="client is not suspended"):
        save_partition(linked.client)
    linked.hypervisor.suspend(linked.server)
    with pytest.raises(LocalError, match="server serves others"):
        save_partition(linked.server)


def test_operations_at_work_on_its_memory_keep_a_partition(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    linked.client.pins += 1
    with pytest.raises(LocalError, match="1 DMA operations are at work"):
        save_partition(linked.client)
    linked.client.pins -= 1


def pending_and_accepted(state: PartitionState) -> None:
    source = state.adapters[0].interrupt
    state.pending = [source]
    state.accepted = [source]


WRONG: dict[str, tuple[Callable[[PartitionState], object], str]] = {
    "memory": (lambda state: setattr(state, "memory", 8 * PAGE), "bytes of memory; it was saved with"),
    "slots": (lambda state: state.adapters.clear(), "adapters in slots"),
    "sources": (lambda state: setattr(state.adapters[0], "sources", 99), "number of interrupts"),
    "tce beyond memory": (lambda state: state.adapters[0].tces.update({1: 1 << 40 | 3}), "does not fit"),
    "tce beyond the window": (lambda state: state.adapters[0].tces.update({1 << 30: 3}), "does not fit"),
    "tce of 65 bits": (lambda state: state.adapters[0].tces.update({1: 1 << 64}), "does not fit"),
    "negative page": (lambda state: state.adapters[0].tces.update({-1: 3}), "does not fit"),
    "queue beyond the window": (
        lambda state: setattr(state.adapters[0], "queue", SavedQueue(32 * PAGE, PAGE, 0)),
        "no CRQ can be",
    ),
    "queue of no page": (lambda state: setattr(state.adapters[0], "queue", SavedQueue(0, 100, 0)), "no CRQ can be"),
    "place within a slot": (
        lambda state: setattr(state.adapters[0], "queue", SavedQueue(0, PAGE, 8)),
        "no CRQ can be",
    ),
    "place beyond the queue": (
        lambda state: setattr(state.adapters[0], "queue", SavedQueue(0, PAGE, PAGE)),
        "no CRQ can be",
    ),
    "interrupt of nobody": (lambda state: state.pending.append(0x9999), "is none of an adapter"),
    "interrupt that is two things": (pending_and_accepted, "is said to be accepted"),
    "interrupt of 25 bits": (lambda state: state.accepted.append(1 << 24), "is said to be accepted"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_state_that_does_not_fit_is_told(linked: Rig, elsewhere: Elsewhere, what: str) -> None:
    state, _ = suspended(linked)
    spoil, words = WRONG[what]
    size, adapters = state.memory, list(state.adapters)
    spoil(state)
    client = elsewhere.hypervisor.create_partition("client", size)
    for saved in adapters:
        elsewhere.hypervisor.create_pair(
            elsewhere.server,
            client,
            client_window=saved.window,
            client_slot=saved.slot,
            client_identity=saved.identity,
        )
    with pytest.raises(LocalError, match=words):
        restore_partition(client, state)


def test_another_number_of_sub_crqs_is_told(linked: Rig) -> None:
    state, memory = suspended(linked)
    with Hypervisor(Policy(max_sub_crqs=1)) as hypervisor:
        other = Elsewhere(hypervisor, hypervisor.create_partition("server", 16 * PAGE))
        with pytest.raises(LocalError, match="number of interrupts"):
            other.receive(state, memory)


def test_sub_crqs_are_not_moved(elsewhere: Elsewhere) -> None:
    linked = make_rig()
    linked.connect()
    code, cookie, _ = linked.c.reg_sub_crq(linked.c_ua, PAGE, PAGE)
    assert code == 0
    rig = elsewhere.receive(*suspended(linked))
    assert rig.c.free_sub_crq(rig.c_ua, cookie) == ReturnCode.H_PARAMETER
    linked.hypervisor.close()
