"""A guest that writes whatever it likes, beside one that works; both are clients of one VIO server with their disks.

Everything is in the calling thread, so that a run is the same every time. The hostile partition has been an honest one
until its disk worked: so it has a connection, rings and mapped memory, and what it does then leads somewhere.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable

from tests.gateway.stores import PAGE, TceStores

from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.gateway import layout
from powervio.gateway.layout import SLOT_SIZE
from powervio.gateway.session import Session
from powervio.papr.codes import Hcall
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.registry import TABLE
from powervio.storage.image import open_image
from powervio.testing.clock import Clock
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.protocol import Message
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk
from powervio.virtio.driver_queue import Buffer

MIB = 1 << 20
U64 = (1 << 64) - 1
SLOTS = 8
DISK = 64 << 10
ROUNDS = 64
"""Passes over its interrupts in which a VIO server has done what there is to do for its clients."""
MESSAGES = tuple(kind for kind in Message if kind < Message.USED)
TOKENS = (*sorted(TABLE), layout.G_FEATURES, layout.G_TREE, layout.G_DIRECT)


def content(number: int) -> bytes:
    """A disk each sector of which says where it is."""
    return b"".join(struct.pack("<II", number, sector) * 64 for sector in range(DISK // 512))


class Faults(logging.Handler):
    """Keeps what is logged with an exception, or as an error of the gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or (record.levelno >= logging.ERROR and record.name.startswith("powervio.gateway")):
            self.found.append(logging.Formatter().format(record))


class Client:
    """A partition with a disk, whose software runs here."""

    def __init__(self, house: World, partition: Partition, ends: tuple[VioAdapter, VioAdapter]) -> None:
        self.house = house
        self.partition = partition
        self.adapter = ends[1]
        self.kernel = PartitionKernel(partition.port, clock=Clock())
        self.driver = BlockDriver()
        self.client = VirtioVio(self.kernel, ends[1].node, self.driver)
        self.client.start()
        house.settle(self.kernel)
        self.buffer: Buffer = self.client.allocate(PAGE, mapped=False)
        self.done: list[BlockRequest] = []

    def read(self, sector: int) -> None:
        """Ask for 4 KiB of the disk."""
        self.driver.submit(BlockRequest(blk.T_IN, sector * 512, PAGE, ((self.buffer, 0, PAGE),), self.done.append))
        self.driver.kick()


class World:
    """A hypervisor, a VIO server, a hostile client behind a gateway's session, and another client."""

    def __init__(self) -> None:
        self.faults = Faults()
        logging.getLogger("powervio").addHandler(self.faults)
        self._ends: list[Callable[[], object]] = []
        self.hypervisor = Hypervisor()
        vios, hostile, other = (
            self.hypervisor.create_partition(name, size)
            for name, size in (("vios", 2 * MIB), ("hostile", MIB), ("other", MIB))
        )
        self.server, self.hostile, self.other = vios, hostile, other
        self.hypervisor.create_physical_adapter(vios, MIB)
        self.kernel = PartitionKernel(vios.port, clock=Clock())
        pairs = [
            self.hypervisor.create_pair(vios, client, server_window=MIB, client_window=MIB)
            for client in (hostile, other)
        ]
        self.disks = [self._disk(ends, number) for number, ends in enumerate(pairs)]
        where = layout.plan(MIB, hostile.partition_id, slots=SLOTS, vectors=4)
        hostile.waits = False  # as `Gateway.add` has it
        self.session = Session(hostile, where)
        self.region, self.where = self.session.region.view, where
        self.session.hcall(layout.G_FEATURES, where.features)
        self.stores = TceStores(self.region, where)
        self.guest = Client(self, hostile, pairs[0])
        self.neighbour = Client(self, other, pairs[1])
        self.guest.read(0)
        self.settle(self.guest.kernel)
        assert len(self.guest.done) == 1
        self.guest.read(8)  # in flight, if nobody settles
        self.node = pairs[0][1].node
        self.liobn = self.node.windows[0].liobn
        self.interesting = [
            self.node.unit_address, self.liobn, self.node.interrupt, hostile.tree_source, pairs[0][0].unit_address,
            self.liobn - 1, 0, 1, 2, 3, 8, 16, PAGE, PAGE | 3, 2 * PAGE | 3, MIB - PAGE | 3, MIB, MIB | 3, U64,
            1 << 63, 0x80 << 56, 0xC0 << 56, 0xFF06 << 48, 512, 4096 * 4096,
        ]  # fmt: skip
        self.others = bytes(other.memory)

    def _disk(self, ends: tuple[VioAdapter, VioAdapter], number: int) -> int:
        """Serve a disk from memory, a file that is open as what is returned."""
        fd = os.memfd_create(f"powervio-test-disk{number}")
        os.write(fd, content(number))
        image = open_image(f"/proc/self/fd/{fd}")
        self._ends += [image.close, lambda: os.close(fd)]
        VirtioCrq(self.kernel, ends[0].node, BlockDevice(image), redirect_min=1 if number else None).start()
        return fd

    # -- what the hostile guest does

    def write_region(self, offset: int, data: bytes) -> None:
        """Anything, anywhere in the region."""
        self.region[offset : offset + len(data)] = data

    def write_memory(self, offset: int, data: bytes) -> None:
        """Anything, anywhere in its own memory: queues, rings, requests, lists."""
        self.hostile.memory[offset : offset + len(data)] = data

    def write_tce(self, page: int, tce: int) -> None:
        """An entry of its shared table, of whatever may be there by now."""
        struct.pack_into("<Q", self.stores.area, PAGE + 8 * (page % 256), tce)

    def post(self, token: int, registers: list[int]) -> None:
        """The next hcall."""
        slot = self.where.slots_offset + self.session.mailbox.served % SLOTS * SLOT_SIZE
        words = [self.session.mailbox.served + 1, token, *(registers + [0] * 9)[:9]]
        struct.pack_into("<11Q", self.region, slot, *words)

    def message(self, header: int, kind: int, session: int, rest: int, low: int) -> None:
        """An element for the VIO server's queue: header, type, session number and the 12 bytes behind them."""
        high = header << 56 | (kind & 0xFF) << 48 | (session & 0xFFFF) << 32 | rest
        self.post(Hcall.H_SEND_CRQ, [self.node.unit_address, high, low])

    def turn(self) -> None:
        """The gateway's turn with it, and the VIO server's."""
        before = self.session.mailbox.served
        self.session.turn(SLOTS)
        assert self.session.mailbox.served - before <= SLOTS
        for _ in range(ROUNDS):
            if not self.kernel.poll():
                return

    # -- what must hold

    def settle(self, kernel: PartitionKernel) -> None:
        """Server and client take turns until there is nothing to do, for so many rounds at most."""
        for _ in range(ROUNDS):
            if not self.kernel.poll() | kernel.poll():
                return

    def check(self) -> None:
        """Nobody else's memory was touched, nothing has failed here, and the other guest's requests complete."""
        assert self.faults.found == []
        assert bytes(self.other.memory) == self.others
        assert os.pread(self.disks[1], DISK, 0) == content(1)
        neighbour = self.neighbour
        for sector in (0, 8, DISK // 512 - 8):
            neighbour.done.clear()
            neighbour.read(sector)
            self.settle(neighbour.kernel)
            assert [request.error for request in neighbour.done] == [None]
            assert bytes(neighbour.buffer.view) == content(1)[sector * 512 : sector * 512 + PAGE]
        self.others = bytes(self.other.memory)
        assert self.hostile.alive
        assert self.server.alive

    def close(self) -> None:
        """Its process ends like any other's."""
        self.session.close()
        self.hypervisor.fail(self.hostile)
        for _ in range(ROUNDS):
            if not self.kernel.poll():
                break
        found = self.faults.found
        logging.getLogger("powervio").removeHandler(self.faults)
        for kernel in (self.guest.kernel, self.neighbour.kernel, self.kernel):
            kernel.close()
        self.hypervisor.close()
        for end in self._ends:
            end()
        assert found == []


# -- the same from bytes


class Reader:
    """Choices made of bytes, in their order; 0 when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        value = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return value

    def chunk(self, limit: int) -> bytes:
        length = self.number(1) % (limit + 1)
        found = self._data[self._at : self._at + length]
        self._at += length
        return found

    def value(self, interesting: list[int]) -> int:
        """One that leads somewhere, or any."""
        choice = self.number(1)
        if choice < 200:
            return interesting[choice % len(interesting)]
        return self.number(8) if choice < 228 else self.number(2)


def play(data: bytes) -> None:
    """What a guest does that has these bytes for a mind, and what must hold then."""
    world = World()
    try:
        reader = Reader(data)
        for _ in range(64):
            if not reader.left:
                break
            step(world, reader)
        world.turn()
        world.check()
    finally:
        world.close()


def step(world: World, reader: Reader) -> None:
    kind = reader.number(1) % 8
    if kind == 0:
        world.write_region(reader.number(2), reader.chunk(64))
    elif kind == 1:  # where its queue, its rings and its requests are
        world.write_memory(reader.number(2), reader.chunk(64))
    elif kind == 2:
        world.write_tce(reader.number(1), reader.value([page * PAGE | 3 for page in range(12)] + world.interesting))
    elif kind == 3:
        send(world, reader)
        world.turn()
    elif kind == 4:
        world.turn()
    elif kind == 5:  # a kick
        world.guest.driver.kick()
        world.turn()
    else:
        token = TOKENS[reader.number(1) % len(TOKENS)]
        world.post(token, [reader.value(world.interesting) for _ in range(reader.number(1) % 10)])
        if kind == 6:
            world.turn()


def send(world: World, reader: Reader) -> None:
    """A message, most often of a sort that its server understands, in the session that there is."""
    choice = reader.number(1)
    header = reader.number(1) | 0x80 if choice > 240 else 0x80
    kind = MESSAGES[choice % len(MESSAGES)] if choice < 220 else reader.number(1)
    session = 1 if choice < 200 else reader.number(2)
    rest = reader.value(world.interesting) & 0xFFFF_FFFF if choice & 1 else reader.number(2)
    world.message(header, kind, session, rest, reader.value(world.interesting))
