"""A front end that shrinks the file of its memory: its rings break, and the back end serves the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vhost_user.harness import Serving, memory, serving
from tests.vhost_user.test_back_end import (
    AVAILABLE,
    DATA,
    GUEST,
    SIZE,
    USED,
    USER,
    USUAL,
    Ring,
    connect,
    event,
)

from powervio import _compiled
from powervio.devices.block import BlockDevice
from powervio.memory.area import MappedArea
from powervio.storage.image import open_image
from powervio.testing.echo import EchoDevice
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.protocol import FrontEnd, VringState
from powervio.virtio import block as blk
from powervio.virtio import status as device_status

LOST = "the file of a memory region became shorter"
LENGTH = 1 << 20


@pytest.fixture
def area() -> Iterator[MappedArea]:
    """Memory that nobody has sealed. What is cut off is not touched here."""
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, LENGTH)
    made = MappedArea(fd, LENGTH)
    yield made
    made.close()


def broken(back: Serving) -> list[str | None]:
    """Why each ring is not served any more."""
    link = back.server.link
    assert link is not None
    return [vring.broken or None for vring in link.back_end.vrings]


def is_well(back: Serving, device: EchoDevice) -> None:
    """A front end that comes now is served."""
    before = device.requests
    with memory() as other:
        peer = connect(back, other)
        ring = Ring(peer, other).set_up().enable()
        ring.add(b"hello")
        ring.wait(1)
        assert ring.echo(0, 5) == b"hello"
        peer.close()
        ring.close()
    assert device.requests == before + 1


@pytest.mark.parametrize("left", [0, AVAILABLE, USED, DATA])
@pytest.mark.parametrize("rings", [1, 2])
def test_rings_of_a_memory_that_shrank_break(tmp_path: Path, area: MappedArea, left: int, rings: int) -> None:
    if not _compiled.is_compiled():  # then nothing can be done, see `memory/guard.py`
        return
    device = EchoDevice(queue_count=2)
    with serving(tmp_path, device) as back:
        peer = connect(back, area, USUAL | wire.P_STATUS)
        made = [Ring(peer, area, index, 0x4000 * index * 4).set_up().enable() for index in range(rings)]
        assert peer.done(FrontEnd.SET_STATUS, wire.U64(15))
        for ring in made:
            ring.add(b"fine")
            ring.wait(1)
            ring.add(b"lost", kick=False)
            ring.add(b"more", kick=False)
        os.ftruncate(area.fd, left)
        for ring in made:
            os.eventfd_write(ring.kick, 1)
            assert event(ring.error) == 1
        assert broken(back)[:rings] == [LOST] * rings
        assert peer.get(FrontEnd.GET_STATUS) == 15 | device_status.NEEDS_RESET
        assert device.requests <= rings + 1, "at most the one that met it was served with what was not there"
        peer.close()
        for ring in made:
            ring.close()
        is_well(back, device)


def test_memory_that_is_shared_anew_mends_the_ring(tmp_path: Path, area: MappedArea) -> None:
    if not _compiled.is_compiled():
        return
    device = EchoDevice(queue_count=2)
    with serving(tmp_path, device) as back:
        peer = connect(back, area)
        ring = Ring(peer, area).set_up().enable()
        ring.add(b"fine")
        ring.wait(1)
        os.ftruncate(area.fd, 0)
        os.eventfd_write(ring.kick, 1)
        assert event(ring.error) == 1
        assert peer.ask(FrontEnd.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 1)
        with memory() as other:
            table = wire.MemoryTable((wire.Region(GUEST, other.size, USER, 0),))
            assert peer.done(FrontEnd.SET_MEM_TABLE, table, [other.fd])
            again = Ring(peer, other).set_up().enable()
            again.add(b"again")
            again.wait(1)
            assert again.echo(0, 5) == b"again"
            again.close()
        peer.close()
        ring.close()


class BlockRing(Ring):
    """Requests of a disk: header, data, status, each where it is told."""

    def put(self, kind: int, sector: int, header: int, data: int, status: int) -> None:
        view = self.area.view
        view[header : header + 16] = blk.REQUEST_HEADER["little"].pack(kind, 0, sector)
        writable = 2 if kind == blk.T_IN else 0
        chain = ((header, 16, 1, 1), (data, 4096, 1 | writable, 2), (status, 1, 2, 0))
        slot = 3 * (self.next % 2)
        for number, (where, length, flags, following) in enumerate(chain):
            at = 16 * (slot + number)
            words = (GUEST + where).to_bytes(8, "little"), length.to_bytes(4, "little"), flags.to_bytes(2, "little")
            view[at : at + 16] = b"".join(words) + (slot + following).to_bytes(2, "little")
        place = AVAILABLE + 4 + 2 * (self.next % SIZE)
        view[place : place + 2] = slot.to_bytes(2, "little")
        self.next += 1
        view[AVAILABLE + 2 : AVAILABLE + 4] = self.next.to_bytes(2, "little")


@pytest.mark.parametrize("kind", [blk.T_IN, blk.T_OUT])
@pytest.mark.parametrize(
    ("header", "data", "status", "left"),
    [
        (0x3000, 0x9000, 0x4000, 0x8000),  # the data are lost
        (0x9000, 0x5000, 0x4000, 0x8000),  # the header
        (0x3000, 0x5000, 0x9000, 0x8000),  # the status
        (0x3000, 0x5000, 0x4000, 0),
    ],
)
def test_loop_of_a_disk_in_memory_breaks_its_ring(
    tmp_path: Path, memory_folder: Path, area: MappedArea, kind: int, header: int, data: int, status: int, left: int
) -> None:
    if not _compiled.is_compiled():
        return
    path = memory_folder / "image"
    before = b"\x5a" * LENGTH
    path.write_bytes(before)
    with open_image(path) as image, serving(tmp_path, BlockDevice(image)) as back:
        peer = connect(back, area)
        ring = BlockRing(peer, area)
        ring.set_up().enable()
        area.view[data : data + 4096] = b"\x5a" * 4096
        for number in range(2):  # the second one through the mapping
            ring.put(kind, 8, header, data, status)
            os.eventfd_write(ring.kick, 1)
            ring.wait(number + 1)
            assert area.view[status] == 0
        ring.put(kind, 8, header, data, status)
        os.ftruncate(area.fd, left)
        os.eventfd_write(ring.kick, 1)
        assert event(ring.error) == 1
        assert broken(back) == [LOST]
        peer.close()
        ring.close()
        again = connect(back, None)
        again.close()
    after = path.read_bytes()
    assert len(after) == LENGTH
    assert after[:4096] + after[8192:] == before[:4096] + before[8192:], "nothing is written elsewhere"
