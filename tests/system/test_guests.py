"""Client partitions that are guests: a door, disks for whoever is behind it, and what becomes of them when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from pathlib import Path

import pytest
from tests.gateway.harness import Process

from powervio.drivers.block_core import BlockCore
from powervio.errors import LocalError
from powervio.gateway.remote_port import RemotePort
from powervio.storage.image import open_image
from powervio.system import hotplug
from powervio.system.config import Config, Disk, Lpar, Size, Vios
from powervio.system.doors import GuestDoor
from powervio.system.load import parse
from powervio.system.system import System
from powervio.system.threaded import ThreadedSystem
from powervio.testing.partition_process import BLOCK, content
from powervio.transport.crq.client import VirtioVio
from powervio.vio.kernel import PartitionKernel

from .harness import House, run, wait_for

MIB = 1 << 20
SYSTEM = """
[[vios]]
name = "vios1"
[[lpar]]
name = "guest1"
guest = "door"
arch = "x86_64"
memory = "16M"
[[lpar.disk]]
vios = "vios1"
image = "disk.img"
"""


def declared(house: House, more: str = "") -> Path:
    house.image("disk.img", 4 * MIB)
    (house.folder / "s.toml").write_text(SYSTEM + more)
    return house.folder / "s.toml"


async def guest(door: GuestDoor) -> Process:
    """A process that is the partition."""
    process = await asyncio.to_thread(Process, "disk", door.path)
    assert await asyncio.to_thread(process.line) == "ready"
    return process


async def ask(process: Process, line: str) -> str:
    return await asyncio.to_thread(process.ask, line)


@pytest.mark.dual
def test_guest_that_is_killed_leaves_its_disk_to_the_next_one(house: House) -> None:
    async def scenario(system: System) -> None:
        door = system.doors["guest1"]
        first = await guest(door)
        try:
            assert await ask(first, "write 0 64 1 16") == "good"
            assert [entry["state"] for entry in system.report()["adapters"]] == ["running", "running"]
            first.tell("write 64 500 2 32")
        finally:
            first.close()
        second = await guest(door)
        try:
            assert await ask(second, "check 0 64 1 16") == "good"
            assert await ask(second, "write 0 8 3 8") == "good"
            assert door.guests == 2
        finally:
            second.close()

    run(declared(house), scenario)
    image = (house.folder / "disk.img").read_bytes()
    assert [image[n * BLOCK : (n + 1) * BLOCK] == content(3, n) for n in range(8)] == [True] * 8
    assert not list(house.run_folder.glob("*.door"))


@pytest.mark.dual
def test_guest_learns_of_disks_that_come_and_grow_by_its_device_tree_and_its_server(house: House) -> None:
    house.image("more.img", 2 * MIB)

    async def scenario(system: System) -> None:
        door = system.doors["guest1"]
        port = await asyncio.to_thread(RemotePort.connect, door.path, memory_path=door.memory_path)
        try:
            before = set(port.nodes)
            disk = await system.plug.attach("guest1", {"image": str(house.folder / "more.img")})
            assert await asyncio.to_thread(port.xirr) & 0xFF_FFFF == port.tree_source
            await asyncio.to_thread(port.watch_tree)
            (new,) = set(port.nodes) - before
            assert new == disk.client_adapter.unit_address
            await system.plug.resize(disk, 4 * MIB)
            assert disk.device.capacity == 4 * MIB
        finally:
            port.close()

    run(declared(house), scenario)
    assert (house.folder / "more.img").stat().st_size == 4 * MIB


class ReleasingGuest:
    """A guest in this process, in a thread of its own, whose driver lets go of what it is asked to let go of."""

    def __init__(self, door: GuestDoor) -> None:
        self.port = RemotePort.connect(door.path, limit=10)
        self.kernel = PartitionKernel(self.port)
        (self.node,) = self.port.nodes.values()
        self.end = VirtioVio(self.kernel, self.node, BlockCore())
        self.obeys = True
        self.asked = 0
        self.end.start()
        self.kernel.watch_tree(self._changed)
        self.kernel.start()

    def _changed(self) -> None:
        node = self.port.nodes.get(self.node.unit_address)
        if node is not None and node.release:
            self.asked += 1
            if self.obeys:
                self.end.stop()

    def close(self) -> None:
        self.kernel.close()
        self.port.close()


@pytest.mark.dual
@pytest.mark.parametrize("way", ["obeys", "keeps it", "forced"])
def test_guest_is_asked_to_let_go_of_a_disk(house: House, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """G3.5"""
    monkeypatch.setattr(hotplug, "RELEASE_LIMIT", 0.3 if way == "keeps it" else 20)

    async def scenario(system: System) -> None:
        guest = await asyncio.to_thread(ReleasingGuest, system.doors["guest1"])
        try:
            guest.obeys = way == "obeys"
            await asyncio.to_thread(wait_for, lambda: guest.end.running)
            (disk,) = system.disks
            detaching = asyncio.ensure_future(system.plug.detach(disk))
            await asyncio.to_thread(wait_for, lambda: guest.asked == 1)
            if way == "keeps it":
                with pytest.raises(LocalError, match=r"^guest1/2 is still in use by its guest"):
                    await detaching
                assert not disk.client_adapter.node.release
                assert disk.client_adapter.registered
                return
            if way == "forced":
                await system.plug.detach(disk, force=True)
            await detaching
            assert not system.disks
            open_image(house.folder / "disk.img").close()
            await asyncio.to_thread(wait_for, lambda: not guest.port.nodes)
        finally:
            guest.close()

    run(declared(house), scenario)


def test_guest_keeps_a_disk_whose_server_is_terminated_and_hears_what_ours_only_have(house: House) -> None:
    async def scenario(system: System) -> None:
        guest = await asyncio.to_thread(ReleasingGuest, system.doors["guest1"])
        try:
            await asyncio.to_thread(wait_for, lambda: guest.end.running)
            options = {"image": str(house.folder / "x.img"), "size": MIB, "nbd": str(house.folder / "x.sock")}
            with pytest.raises(LocalError) as caught:
                await system.plug.attach("guest1", options)
            assert str(caught.value) == (
                "disk.nbd: the partition is a guest, and the disk is for programs in the guest"
            )
            await system.servers.terminate("vios1")
            assert [entry["state"] for entry in system.report()["adapters"]] == ["waiting", "closed"]
            with pytest.raises(LocalError, match=r"cannot write what it has for it while vios1 is terminated"):
                await system.plug.detach(system.disks[0])
            await asyncio.to_thread(wait_for, lambda: not guest.end.running)
            await asyncio.to_thread(guest.kernel.call, lambda: None)  # it has done with FF01
            await system.plug.detach(system.disks[0], force=True)
        finally:
            guest.close()

    run(declared(house), scenario)


def test_disk_that_no_guest_uses_is_detached_at_once(house: House) -> None:
    async def scenario(system: System) -> None:
        await system.plug.detach(system.disks[0])
        assert not system.partitions["guest1"].nodes

    run(declared(house), scenario)


def test_ps_and_up_show_what_a_virtual_machine_is_started_with(house: House) -> None:
    process = house.up(declared(house, '[[lpar.console]]\nvios = "vios1"\n').name)
    door, memory = (house.run_folder / f"guest1@s.{kind}" for kind in ("door", "memory"))
    shown = house.ok("ps")
    assert f"guest1: {door}, no guest is there" in shown
    (line,) = (line for line in shown.splitlines() if "qemu-system" in line)
    words = shlex.split(line)
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-m") + 1] == "16M"
    assert f"memory-backend-file,id=ram,size={16 * MIB},mem-path={memory},share=on" in words
    assert "ivshmem-doorbell,chardev=gate,vectors=32" in words
    report = json.loads(house.ok("ps", "--json"))
    assert report["lpar"][0]["door"]["options"] == words[1:]
    assert memory.stat().st_size == 16 * MIB
    said = house.refused("save", "guest1", "saved")
    assert said == "guest1 is a guest: what runs in it is not ours to save"
    assert house.end(process) == "stopping; a second Ctrl-C ends at once\n"
    assert not door.exists()
    assert not memory.is_symlink()


def test_door_of_a_system_that_was_killed_is_no_obstacle(house: House) -> None:
    file = declared(house).name
    process = house.up(file)
    process.kill()
    process.wait()
    assert (house.run_folder / "guest1@s.door").exists()
    house.end(house.up(file))


def test_system_in_a_thread_has_a_door_for_code_without_a_loop(house: House) -> None:
    image = house.image("disk.img", 4 * MIB)
    disk = Disk(vios="vios1", image=str(image))
    lpar = Lpar(name="guest", guest="door", memory=Size(16 * MIB), disk=[disk])
    config = Config("boot", [Vios(name="vios1")], [lpar])
    with ThreadedSystem(config) as running:
        door = running.door("guest")
        assert (door.vectors, door.memory, os.stat(door.memory_path).st_size) == (32, 16 * MIB, 16 * MIB)
        process = Process("disk", door.path)
        try:
            assert process.line() == "ready"
            assert process.ask("write 0 4 1 4") == "good"
            wait_for(lambda: door.attached)
        finally:
            process.close()
    open_image(image).close()
    image.unlink()
    with pytest.raises(LocalError, match=r"disk\.img"), ThreadedSystem(config):
        raise AssertionError("it started")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"16M"', '"16388K"', "lpar[0].memory: 16388K; of a guest on x86_64 expected a multiple of 1M"),
        ('"x86_64"', '"ppc64le"', "lpar[0].memory: 16M; of a guest on ppc64le expected a multiple of 256M"),
        ('"x86_64"', '"riscv64"', 'lpar[0].arch: expected "x86_64" or "ppc64le", found "riscv64"'),
        ('guest = "door"', "", 'lpar[0].arch: it is about guests; expected guest = "linux" or "door" beside it'),
        (
            'vios = "vios1"\nimage',
            'nbd = "d.sock"\nvios = "vios1"\nimage',
            "lpar[0].disk[0].nbd: the partition is a guest, and the disk is for programs in the guest",
        ),
        (
            'vios = "vios1"\nimage',
            'ring = "packed"\nvios = "vios1"\nimage',
            "lpar[0].disk[0].ring: the partition is a guest, and the guest's own driver decides that",
        ),
        (
            'vios = "vios1"\nimage',
            'vios = ["vios1", "vios2"]\nimage',
            "lpar[0].disk[0].vios: a guest takes each path for a disk of its own; expected one VIO server",
        ),
    ],
)
def test_mistake_about_a_guest_is_told(house: House, old: str, new: str, problem: str) -> None:
    house.image("disk.img", MIB)
    text = SYSTEM.replace(old, new) + '[[vios]]\nname = "vios2"\n'
    with pytest.raises(LocalError) as caught:
        parse(text, "s.toml", house.folder)
    assert f"s.toml: {problem}" in str(caught.value).splitlines()


def test_console_of_a_guest_is_a_virtio_console_without_programs_of_ours(house: House) -> None:
    declared(house)
    with pytest.raises(LocalError) as caught:
        parse(SYSTEM + '[[lpar.console]]\nvios = "vios1"\ntype = "vterm"\nexec = "sh"\n', "s.toml", house.folder)
    assert str(caught.value).splitlines() == [
        "s.toml: lpar[0].console[0].type: the partition is a guest, and a guest has no virtual terminal, only virtio"
        " consoles",
        "s.toml: lpar[0].console[0].exec: the partition is a guest, and the device is for programs in the guest",
    ]
