"""A server and a client partition of 16 pages each, joined by one pair of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from powervio.papr.port import HcallPort
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.policy import Policy

PAGE = 4096
MEMORY = 16 * PAGE
SERVER_WINDOW = 16 * PAGE
CLIENT_WINDOW = 32 * PAGE


@dataclass
class Rig:
    """Short names for the parts that tests talk about."""

    hypervisor: Hypervisor
    server: Partition
    client: Partition
    server_end: VioAdapter
    client_end: VioAdapter

    def __post_init__(self) -> None:
        self.s: HcallPort = self.server.port
        self.c: HcallPort = self.client.port
        self.s_ua = self.server_end.unit_address
        self.c_ua = self.client_end.unit_address
        self.local = self.server_end.window.liobn
        """The server's first pane."""
        assert self.server_end.remote_pane is not None
        self.remote = self.server_end.remote_pane.liobn
        """The server's second pane, onto the client's window."""
        self.window = self.client_end.window.liobn
        """The client's first pane."""

    def map_all(self) -> None:
        """Map each partition's pages one to one, read and write."""
        for page in range(16):
            assert self.s.put_tce(self.local, page * PAGE, page * PAGE | 3) == 0
            assert self.c.put_tce(self.window, page * PAGE, page * PAGE | 3) == 0

    def connect(self) -> None:
        """Map everything and register page 0 of both partitions as their queues."""
        self.map_all()
        assert self.s.reg_crq(self.s_ua, 0, PAGE) == 2
        assert self.c.reg_crq(self.c_ua, 0, PAGE) == 0


def make_rig(policy: Policy | None = None, max_virtual_dma_size: int | None = None) -> Rig:
    hypervisor = Hypervisor(policy or Policy(), max_virtual_dma_size)
    server = hypervisor.create_partition("server", MEMORY)
    client = hypervisor.create_partition("client", MEMORY)
    ends = hypervisor.create_pair(server, client, server_window=SERVER_WINDOW, client_window=CLIENT_WINDOW)
    return Rig(hypervisor, server, client, *ends)


@pytest.fixture
def new_rig() -> Callable[[], Rig]:
    """For tests that need more than one; they close them."""
    return make_rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """The pair as created: nothing mapped, nothing registered."""
    made = make_rig()
    yield made
    made.hypervisor.close()


@pytest.fixture
def linked(rig: Rig) -> Rig:
    """All pages mapped, both queues registered, panes linked."""
    rig.connect()
    return rig


@pytest.fixture
def strict() -> Iterator[Rig]:
    """As `linked`, with every strict choice taken."""
    made = make_rig(
        Policy(
            limit_stuff_tce=True,
            reject_reserved_headers=True,
            reject_undefined_signal_bits=True,
            overlay_full_queue=False,
            max_crq_length=2 * PAGE,
        ),
        max_virtual_dma_size=0x2_0000,
    )
    made.connect()
    yield made
    made.hypervisor.close()
