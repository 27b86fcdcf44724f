"""Shared TCE tables: what a partition stores there, and what the hypervisor makes of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.harness import MIB, House, wait_until
from tests.gateway.stores import PAGE, TceStores

from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.gateway import layout
from powervio.gateway.remote_port import RemotePort
from powervio.gateway.session import Session
from powervio.papr.codes import ReturnCode
from powervio.papr.engine import DmaFault
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.physical import PhysicalAdapter, buffers_of
from powervio.storage.image import open_image
from powervio.testing.clock import Clock
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk

pytestmark = pytest.mark.dual

SHARED = layout.FEATURE_SHARED_TCE
WINDOW = 16 * PAGE


def create_pair(hypervisor: Hypervisor, server: Partition, client: Partition) -> tuple[VioAdapter, VioAdapter]:
    return hypervisor.create_pair(server, client, server_window=WINDOW, client_window=WINDOW)


class Linked:
    """A client behind a gateway, without a thread, and its VIO server here; page 0 of both is their queue."""

    def __init__(self, region_size: int = layout.DEFAULT_REGION) -> None:
        self.hypervisor = Hypervisor()
        self.server, self.client = (self.hypervisor.create_partition(name, MIB) for name in ("vios1", "client1"))
        self.server_end, self.client_end = create_pair(self.hypervisor, self.server, self.client)
        assert self.server_end.remote_pane is not None
        self.remote = self.server_end.remote_pane.liobn
        self.local = self.server_end.window.liobn
        self.window = self.client_end.window.liobn
        where = layout.plan(MIB, self.client.partition_id, region_size=region_size)
        self.session = Session(self.client, where)
        self.stores = TceStores(self.session.region.view, where)
        for page in range(16):
            self.server.port.put_tce(self.local, page * PAGE, page * PAGE | 3)
        self.hcall(0x20, self.window, 0, 3)
        self.server.port.reg_crq(self.server_end.unit_address, 0, PAGE)
        self.client.port.reg_crq(self.client_end.unit_address, 0, PAGE)
        self.client.memory[: 8 * PAGE] = b"".join(bytes([page]) * PAGE for page in range(8))
        self.client.memory[:PAGE] = bytes(PAGE)

    def hcall(self, token: int, *registers: int) -> tuple[int, ...]:
        return self.session.hcall(token, *registers, *[0] * (9 - len(registers)))

    def share(self) -> None:
        assert self.hcall(layout.G_FEATURES, SHARED) == (0, SHARED)

    def read(self, ioba: int, length: int = 8) -> bytes | int:
        """What the server gets of the client's window, or the return code."""
        code, data = self.server.port.read_rdma(self.remote, ioba, length)
        return code or data

    def engine(self) -> PhysicalAdapter:
        return self.hypervisor.create_physical_adapter(self.server, WINDOW)

    def close(self) -> None:
        self.session.close()
        self.hypervisor.close()


@pytest.fixture
def linked() -> Iterator[Linked]:
    made = Linked()
    yield made
    made.close()


def test_directory_and_table_are_the_golden_bytes(linked: Linked) -> None:
    """G9.1, G9.2, G2.1"""
    assert not any(linked.stores.area[:PAGE])
    linked.share()
    assert bytes(linked.stores.area[:16]) == linked.window.to_bytes(4, "little") + b"\x01\0\0\0" + bytes(8)
    assert linked.hcall(0x20, linked.window, 2 * PAGE, 5 * PAGE | 1)[0] == 0
    assert bytes(linked.stores.area[PAGE : PAGE + 32]) == bytes.fromhex(
        "0300000000000000 0000000000000000 0150000000000000 0000000000000000"
    )


def test_what_was_mapped_moves_in_and_out(linked: Linked) -> None:
    """G9.3, G7.1"""
    linked.hcall(0x20, linked.window, 3 * PAGE, 3 * PAGE | 3)
    linked.share()
    assert linked.stores.get(linked.window, 3 * PAGE) == 3 * PAGE | 3
    linked.stores.put(linked.window, 4 * PAGE, 4 * PAGE | 3)
    assert linked.hcall(layout.G_FEATURES, 0) == (0, 0)
    assert linked.stores.directory() == [(linked.window, 0)]
    assert linked.read(3 * PAGE) == b"\x03" * 8
    assert linked.read(4 * PAGE) == b"\x04" * 8
    linked.stores.area[PAGE : 2 * PAGE] = bytes(PAGE)  # nobody looks there any more
    assert linked.read(4 * PAGE) == b"\x04" * 8
    linked.share()
    assert linked.stores.directory() == [(linked.window, 1)]
    assert linked.stores.get(linked.window, 4 * PAGE) == 4 * PAGE | 3


def test_store_maps_and_unmaps(linked: Linked) -> None:
    """G9.4"""
    linked.share()
    assert linked.read(5 * PAGE) == ReturnCode.H_PERMISSION
    linked.stores.put(linked.window, 5 * PAGE, 6 * PAGE | 1)
    assert linked.read(5 * PAGE) == b"\x06" * 8
    assert linked.read(5 * PAGE - 1) == ReturnCode.H_PERMISSION
    assert linked.server.port.write_rdma(linked.remote, 5 * PAGE, b"x") == ReturnCode.H_PERMISSION
    linked.stores.put(linked.window, 5 * PAGE, 7 * PAGE | 3)
    assert linked.server.port.copy_rdma(8192, linked.local, PAGE, linked.remote, 5 * PAGE) == ReturnCode.H_PERMISSION
    assert linked.server.port.copy_rdma(4096, linked.local, PAGE, linked.remote, 5 * PAGE) == 0
    assert linked.server.port.write_rdma(linked.remote, 5 * PAGE, b"12345678") == 0
    assert bytes(linked.client.memory[7 * PAGE : 7 * PAGE + 16]) == b"12345678" + bytes(8)
    linked.stores.put(linked.window, 5 * PAGE, 0)
    assert linked.read(5 * PAGE) == ReturnCode.H_PERMISSION


def test_queue_whose_page_is_unmapped_by_a_store_takes_nothing(linked: Linked) -> None:
    """G9.5"""
    linked.share()
    send = (linked.server_end.unit_address, 0x8080 << 48, 7)
    assert linked.server.port.send_crq(*send) == 0
    linked.stores.put(linked.window, 0, 0)
    assert linked.server.port.send_crq(*send) == ReturnCode.H_CLOSED
    linked.stores.put(linked.window, 0, 2 * PAGE | 3)  # another page from there on
    linked.client.memory[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    assert linked.server.port.send_crq(*send) == 0
    assert bytes(linked.client.memory[2 * PAGE + 16 : 2 * PAGE + 18]) == b"\x80\x80"


@pytest.mark.parametrize("tce", [MIB | 3, (1 << 64) - 1, 1 << 63 | 1, MIB + PAGE | 2])
def test_bad_entry_is_as_if_it_were_0(linked: Linked, tce: int) -> None:
    """G9.5"""
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    assert linked.read(5 * PAGE) == b"\x05" * 8
    linked.stores.put(linked.window, 5 * PAGE, tce)
    assert linked.read(5 * PAGE) == ReturnCode.H_PERMISSION
    assert linked.server.port.put_rtce(linked.remote, 5 * PAGE, linked.engine().liobn, 0, 1) == (
        ReturnCode.H_REMOTE_PARM,
        0,
    )
    assert linked.hcall(0x1C, linked.window, 5 * PAGE) == (0, 0)
    assert linked.hcall(0x20, linked.window, 5 * PAGE, tce)[0] == ReturnCode.H_PARAMETER
    assert linked.stores.get(linked.window, 5 * PAGE) == tce  # nobody but the partition writes it


def test_bits_that_mean_nothing_are_kept(linked: Linked) -> None:
    """G9.2, G9.5: as by H_PUT_TCE."""
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 0xFFC | 3)
    assert linked.read(5 * PAGE) == b"\x05" * 8
    assert linked.hcall(0x1C, linked.window, 5 * PAGE) == (0, 5 * PAGE | 0xFFF)


def test_hcalls_make_and_see_the_same_entries(linked: Linked) -> None:
    """G9.6"""
    linked.share()
    linked.stores.put(linked.window, PAGE, PAGE | 3)
    assert linked.hcall(0x1C, linked.window, PAGE) == (0, PAGE | 3)
    assert linked.hcall(0x138, linked.window, 2 * PAGE, 7 * PAGE | 3, 3)[0] == 0
    struct.pack_into(">2Q", linked.client.memory, 8 * PAGE, PAGE | 1, 2 * PAGE | 2)
    assert linked.hcall(0x13C, linked.window, 5 * PAGE, 8 * PAGE, 2)[0] == 0
    assert [linked.stores.get(linked.window, page * PAGE) for page in range(8)] == [
        3, PAGE | 3, 7 * PAGE | 3, 7 * PAGE | 3, 7 * PAGE | 3, PAGE | 1, 2 * PAGE | 2, 0
    ]  # fmt: skip
    assert linked.read(4 * PAGE) == b"\x07" * 8
    for wrong in ((linked.window, WINDOW, 3, 1), (linked.window, WINDOW - PAGE, 3, 2), (linked.window, 0, MIB | 3, 1)):
        assert linked.hcall(0x138, *wrong)[0] == ReturnCode.H_PARAMETER
    assert linked.hcall(0x20, linked.window, WINDOW, 3)[0] == ReturnCode.H_PARAMETER
    assert linked.hcall(0x1C, linked.window, WINDOW)[0] == ReturnCode.H_PARAMETER
    assert linked.hcall(0x138, linked.window, 0, 0, 16)[0] == 0
    assert not any(linked.stores.area[PAGE : 2 * PAGE])
    assert not linked.stores.in_use(linked.window)


def test_what_is_redirected_stays_until_an_hcall_ends_it(linked: Linked) -> None:
    """G9.7, G9.8"""
    engine = linked.engine()
    linked.client.waits = False  # as behind a door
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    assert not linked.stores.in_use(linked.window)
    assert linked.server.port.put_rtce(linked.remote, 5 * PAGE, engine.liobn, 0, 1) == (0, 0)
    assert linked.stores.in_use(linked.window)
    linked.stores.put(linked.window, 5 * PAGE, 6 * PAGE | 3)
    operation = engine.begin([(0, 16)], to_memory=False)
    assert bytes(buffers_of(operation)[0]) == b"\x05" * 16
    assert linked.hcall(0x138, linked.window, 5 * PAGE, 0, 1)[0] == ReturnCode.H_RESOURCE
    with pytest.raises(DmaFault):
        engine.begin([(0, 16)], to_memory=False)
    assert linked.stores.in_use(linked.window)
    assert linked.stores.get(linked.window, 5 * PAGE) == 6 * PAGE | 3
    engine.end(operation, moved=True)
    assert linked.hcall(0x138, linked.window, 5 * PAGE, 0, 1)[0] == 0
    assert linked.stores.get(linked.window, 5 * PAGE) == 0
    assert not linked.stores.in_use(linked.window)


def test_table_is_in_use_no_longer_than_a_copy_or_a_redirection(linked: Linked) -> None:
    """G9.8"""
    engine, port = linked.engine(), linked.server.port
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    assert linked.read(5 * PAGE) == b"\x05" * 8
    assert linked.read(6 * PAGE) == ReturnCode.H_PERMISSION
    for length in (8, PAGE, 2 * PAGE):
        port.copy_rdma(length, linked.remote, 5 * PAGE, linked.local, PAGE)
        port.write_rdma(linked.remote, 5 * PAGE + length, b"12345678")
        assert not linked.stores.in_use(linked.window)
    linked.hcall(0x1C, linked.window, 5 * PAGE)
    assert not linked.stores.in_use(linked.window)
    assert port.put_rtce(linked.remote, 6 * PAGE, engine.liobn, 0, 1)[0] == ReturnCode.H_REMOTE_PARM
    assert not linked.stores.in_use(linked.window)
    assert port.put_rtce(linked.remote, 5 * PAGE, engine.liobn, 0, 1) == (0, 0)
    linked.read(5 * PAGE)
    assert linked.stores.in_use(linked.window)
    assert port.remove_rtce(linked.remote, 5 * PAGE, engine.liobn, 0, 1) == 0
    linked.read(5 * PAGE)
    assert not linked.stores.in_use(linked.window)


def test_ledger_counts_what_is_met(linked: Linked) -> None:
    """G9.9"""
    linked.share()
    before = linked.client_end.ledger.snapshot()
    for page in range(1, 8):
        linked.stores.put(linked.window, page * PAGE, page * PAGE | 3)
    linked.stores.put(linked.window, 7 * PAGE, 0)
    linked.server.port.copy_rdma(4 * PAGE, linked.remote, PAGE, linked.local, PAGE)
    linked.server.port.copy_rdma(4 * PAGE, linked.remote, PAGE, linked.local, PAGE)
    cost = linked.client_end.ledger.snapshot() - before
    assert (cost["tce_updates"], cost["shared_tce_updates"], cost["hcalls"]) == (4, 4, {})
    linked.hcall(0x20, linked.window, PAGE, 0)
    linked.hcall(0x138, linked.window, 5 * PAGE, 0, 2)
    linked.read(PAGE)
    cost = linked.client_end.ledger.snapshot() - before
    assert (cost["tce_updates"], cost["shared_tce_updates"]) == (7, 4)
    linked.stores.put(linked.window, 2 * PAGE, 0)
    linked.read(2 * PAGE)
    cost = linked.client_end.ledger.snapshot() - before
    assert (cost["tce_updates"], cost["shared_tce_updates"]) == (8, 5)


# -- who has a table


def test_adapters_that_come_later_have_a_table_with_the_next_tree(linked: Linked) -> None:
    """G9.1, G9.3"""
    linked.share()
    linked.stores.put(linked.window, PAGE, PAGE | 3)
    _, second = create_pair(linked.hypervisor, linked.server, linked.client)
    third_server, third = create_pair(linked.hypervisor, linked.server, linked.client)
    liobns = [end.window.liobn for end in (linked.client_end, second, third)]
    assert linked.stores.directory() == [(liobns[0], 1)]
    linked.hcall(layout.G_TREE)
    assert linked.stores.directory() == [(liobns[0], 1), (liobns[1], 2), (liobns[2], 3)]
    linked.stores.put(liobns[1], PAGE, PAGE | 3)
    linked.stores.put(liobns[2], PAGE, 3 * PAGE | 3)
    assert second.table is not None
    assert second.table.get(PAGE) == PAGE | 3
    assert second.partner is not None
    linked.hypervisor.remove_pair(second)
    linked.hcall(layout.G_TREE)
    # the others keep their places; what it had is free, and zeroed for the next one
    assert linked.stores.directory() == [(liobns[0], 1), (liobns[1], 0), (liobns[2], 3)]
    _, fourth = create_pair(linked.hypervisor, linked.server, linked.client)
    linked.hcall(layout.G_TREE)
    assert linked.stores.directory() == [(liobns[0], 1), (fourth.window.liobn, 2), (liobns[2], 3)]
    assert linked.stores.get(fourth.window.liobn, PAGE) == 0
    assert not linked.stores.in_use(fourth.window.liobn)
    assert linked.stores.get(liobns[2], PAGE) == 3 * PAGE | 3
    linked.hypervisor.remove_pair(third_server)
    assert linked.read(PAGE) == b"\x01" * 8


def test_adapter_for_which_there_is_no_room_has_no_entry() -> None:
    """G9.3"""
    linked = Linked(region_size=2 * MIB)
    pairs = [linked.hypervisor.create_pair(linked.server, linked.client, client_window=256 << 20)[1] for _ in range(3)]
    linked.share()
    assert linked.stores.directory() == [(linked.window, 1), (pairs[0].window.liobn, 2)]
    for end in pairs:
        assert linked.hcall(0x20, end.window.liobn, 4096, 4096 | 3)[0] == 0
        assert linked.hcall(0x1C, end.window.liobn, 4096) == (0, 4096 | 3)
    linked.hypervisor.remove_pair(pairs[0])
    linked.hcall(layout.G_TREE)
    assert linked.stores.directory() == [(linked.window, 1), (pairs[1].window.liobn, 2)]
    assert linked.stores.get(pairs[1].window.liobn, 4096) == 4096 | 3
    assert linked.hcall(layout.G_FEATURES, layout.FEATURE_DIRECT)[0] == ReturnCode.H_PARAMETER
    linked.close()


def test_default_windows_fit() -> None:
    where = layout.plan(MIB, 1)
    assert where.tce_room // PAGE - 1 == 13 * ((256 << 20) // PAGE * 8 // PAGE) + 127


def test_directory_has_255_tables_at_most(linked: Linked) -> None:
    """G9.1"""
    for _ in range(257):
        linked.hypervisor.create_pair(linked.server, linked.client, server_window=PAGE, client_window=PAGE)
    linked.share()
    assert len(linked.stores.directory()) == 255


def test_all_mappings_are_gone_with_the_session(linked: Linked) -> None:
    """G9.3, G1.5"""
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    assert linked.read(5 * PAGE) == b"\x05" * 8
    engine = linked.engine()
    linked.server.port.put_rtce(linked.remote, 5 * PAGE, engine.liobn, 0, 1)
    linked.session.close()
    assert linked.read(5 * PAGE) == ReturnCode.H_PERMISSION
    assert linked.client.port.get_tce(linked.window, 0) == (0, 0)
    with pytest.raises(DmaFault):
        engine.begin([(0, 16)], to_memory=False)


def test_reboot_and_end_of_a_partition_that_shares_clear_its_table(linked: Linked) -> None:
    linked.share()
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    linked.hypervisor.reboot(linked.client)
    assert linked.stores.get(linked.window, 5 * PAGE) == 0
    linked.stores.put(linked.window, 5 * PAGE, 5 * PAGE | 3)
    linked.hypervisor.terminate(linked.client)
    assert linked.read(5 * PAGE) == ReturnCode.H_PERMISSION
    assert not linked.session.usable


# -- a disk


def test_disk_of_a_partition_that_maps_by_stores(tmp_path: Path) -> None:
    """The whole way, every mapping of the client a store: nothing of the data path is an hcall for TCEs."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    with House(tmp_path) as house, open_image(image) as backing:
        door = house.door(house.client)
        house.gateway.start()
        port = Storing.connect(door.path, limit=10.0)
        house.at_end(port.close)
        port.begin()
        kernels = [PartitionKernel(house.server.port, clock=Clock()), PartitionKernel(port, clock=Clock())]
        driver = BlockDriver()
        server = VirtioCrq(kernels[0], house.server_adapter.node, BlockDevice(backing))
        client = VirtioVio(kernels[1], house.client_adapter.node, driver)
        server.start()
        client.start()

        def settle() -> None:
            while kernels[0].poll() | kernels[1].poll():
                pass

        settle()
        buffer = client.allocate(4096, mapped=False)
        done: list[BlockRequest] = []
        driver.submit(BlockRequest(blk.T_IN, 4096, 4096, ((buffer, 0, 4096),), done.append))
        driver.kick()
        settle()
        assert [request.error for request in done] == [None]
        costs = house.client_adapter.ledger.snapshot()
        assert not any(name.endswith(("_TCE", "_TCE_INDIRECT")) for name in costs["hcalls"])
        assert costs["shared_tce_updates"] == costs["tce_updates"] > 3
        for kernel in kernels:
            kernel.close()
    wait_until(lambda: not door.attached, "the session goes on")


class Storing(RemotePort):
    """A port whose hcalls for TCEs are stores, as those of a driver that accepted the feature."""

    def begin(self) -> None:
        self.accept_features(SHARED)
        self.stores = TceStores(self._region.view, self.where)

    def put_tce(self, liobn: int, ioba: int, tce: int) -> int:
        self.stores.put(liobn, ioba, tce)
        return 0

    def stuff_tce(self, liobn: int, ioba: int, tce: int, count: int) -> int:
        for page in range(count):
            self.stores.put(liobn, ioba + page * PAGE, tce)
        return 0

    def put_tce_indirect(self, liobn: int, ioba: int, list_address: int, count: int) -> int:
        for page, tce in enumerate(struct.unpack_from(f">{count}Q", self.memory, list_address)):
            self.stores.put(liobn, ioba + page * PAGE, tce)
        return 0
