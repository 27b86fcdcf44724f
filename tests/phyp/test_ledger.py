"""The cost ledger: what is counted, and on whose account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powervio.phyp.ledger import Costs

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
MESSAGE = 0x80 << 56


def spent(before: Costs, after: Costs) -> Costs:
    """What differs from nothing, without the zeroes."""
    return Costs({key: value for key, value in (after - before).items() if value})


def test_snapshot_new_adapter_is_empty(rig: Rig) -> None:
    assert rig.client_end.ledger.snapshot() == {
        "hcalls": {},
        "rdma_operations": 0,
        "rdma_bytes": 0,
        "redirected_pages": 0,
        "redirected_bytes": 0,
        "crq_messages": 0,
        "interrupts": 0,
        "tce_updates": 0,
        "shared_tce_updates": 0,
    }


def test_snapshot_sum_and_difference_are_inverse(linked: Rig) -> None:
    server = linked.server_end.ledger.snapshot()
    client = linked.client_end.ledger.snapshot()
    assert (server + client) - client == server
    assert (server - server)["hcalls"] == {}


def test_tce_calls_count_entries_and_also_failed_attempts(rig: Rig) -> None:
    rig.c.put_tce(rig.window, 0, 3)
    rig.c.put_tce(rig.window, 0, 99 * PAGE | 3)
    rig.c.stuff_tce(rig.window, 0, 0, 5)
    rig.c.put_tce_indirect(rig.window, 0, PAGE, 2)
    rig.c.get_tce(rig.window, 0)
    costs = rig.client_end.ledger.snapshot()
    assert costs["tce_updates"] == 1 + 5 + 2
    assert costs["hcalls"] == {"H_PUT_TCE": 2, "H_STUFF_TCE": 1, "H_PUT_TCE_INDIRECT": 1, "H_GET_TCE": 1}


def test_message_counts_at_the_sender_and_interrupt_at_the_receiver(linked: Rig) -> None:
    linked.s.vio_signal(linked.s_ua, 1)
    server, client = linked.server_end.ledger.snapshot(), linked.client_end.ledger.snapshot()
    linked.c.send_crq(linked.c_ua, MESSAGE, 0)
    linked.c.send_crq(linked.c_ua, 0, 0)
    linked.s.eoi(linked.s.xirr())
    assert spent(client, linked.client_end.ledger.snapshot()) == {"hcalls": {"H_SEND_CRQ": 2}, "crq_messages": 1}
    assert spent(server, linked.server_end.ledger.snapshot()) == {
        "hcalls": {"H_XIRR": 1, "H_EOI": 1},
        "interrupts": 1,
    }


def test_rdma_bytes_count_at_both_ends_and_operations_at_the_server(linked: Rig) -> None:
    server, client = linked.server_end.ledger.snapshot(), linked.client_end.ledger.snapshot()
    linked.s.copy_rdma(100, linked.remote, 0, linked.local, PAGE)
    linked.s.copy_rdma(50, linked.local, PAGE, linked.remote, PAGE)
    linked.s.read_rdma(linked.remote, 0, 7)
    linked.s.write_rdma(linked.remote, PAGE, b"abc")
    linked.s.copy_rdma(8, linked.remote, 20 * PAGE, linked.local, 0)
    assert spent(server, linked.server_end.ledger.snapshot()) == {
        "hcalls": {"H_COPY_RDMA": 3, "H_READ_RDMA": 1, "H_WRITE_RDMA": 1},
        "rdma_operations": 4,
        "rdma_bytes": 160,
    }
    assert spent(client, linked.client_end.ledger.snapshot()) == {"rdma_bytes": 160}


def test_rdma_from_another_adapters_local_pane_counts_at_the_remote_panes_adapter(linked: Rig) -> None:
    other, _ = linked.hypervisor.create_pair(linked.server, linked.client)
    linked.s.put_tce(other.window.liobn, 0, 3)
    server, before = linked.server_end.ledger.snapshot(), other.ledger.snapshot()
    linked.s.copy_rdma(8, other.window.liobn, 0, linked.remote, PAGE)
    assert spent(server, linked.server_end.ledger.snapshot())["hcalls"] == {"H_COPY_RDMA": 1}
    assert spent(before, other.ledger.snapshot()) == {}


def test_calls_of_no_adapter_count_at_the_partition(rig: Rig) -> None:
    rig.c.cppr(0xFF)
    rig.c.xirr()
    rig.c.eoi(0)
    rig.c.send_crq(5, MESSAGE, 0)
    rig.c.free_crq(5)
    rig.c.vio_signal(5, 0)
    rig.c.put_tce(5, 0, 0)
    rig.c.get_tce(5, 0)
    rig.c.stuff_tce(5, 0, 0, 0)
    rig.c.put_tce_indirect(5, 0, 0, 0)
    rig.c.copy_rdma(1, 5, 0, 6, 0)
    rig.c.read_rdma(5, 0, 1)
    rig.c.write_rdma(5, 0, b"")
    names = "CPPR XIRR EOI SEND_CRQ FREE_CRQ VIO_SIGNAL PUT_TCE GET_TCE STUFF_TCE PUT_TCE_INDIRECT COPY_RDMA READ_RDMA"
    assert rig.client.ledger.snapshot()["hcalls"] == dict.fromkeys(
        [f"H_{name}" for name in [*names.split(), "WRITE_RDMA"]], 1
    )


def test_link_calls_count_at_their_adapter(linked: Rig) -> None:
    linked.c.enable_crq(linked.c_ua)
    linked.c.free_crq(linked.c_ua)
    calls = linked.client_end.ledger.snapshot()["hcalls"]
    assert (calls["H_REG_CRQ"], calls["H_ENABLE_CRQ"], calls["H_FREE_CRQ"]) == (1, 1, 1)
