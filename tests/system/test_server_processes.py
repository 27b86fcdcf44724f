"""VIO servers in processes of their own: killed, started again, and what disks that come and go have to do with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.storage.hostfile import ImageBusy
from powervio.storage.image import open_image
from powervio.system.load import parse
from powervio.system.servers import ServerState
from powervio.system.system import System

from .harness import House, PlainNbd, run, wait_for

MIB = 1 << 20
BLOCK = 4096
ONE = """
[[vios]]
name = "vios1"
process = true
[[lpar]]
name = "client1"
memory = "16M"
[[lpar.disk]]
vios = "vios1"
image = "disk.img"
nbd = "one.sock"
"""
TWO_PATHS = ONE.replace('vios = "vios1"', 'vios = ["vios1", "vios2"]') + '[[vios]]\nname = "vios2"\nprocess = true\n'


def declared(house: House, text: str = ONE) -> Path:
    house.image("disk.img", 4 * MIB)
    (house.folder / "s.toml").write_text(text)
    return house.folder / "s.toml"


def pid_of(system: System, name: str = "vios1") -> int:
    pid = system.processes[name].pid
    assert pid is not None
    return pid


async def until(system: System, state: ServerState, name: str = "vios1") -> None:
    async with asyncio.timeout(20):
        while system.servers.state(name) is not state:
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.dual
def test_server_that_is_killed_with_writes_in_flight_goes_on_with_them_when_it_is_started_again(house: House) -> None:
    async def scenario(system: System) -> None:
        driver = system.disks[0].driver
        await driver.write(0, b"a" * BLOCK)
        await system.look()
        server = system.report()["adapters"][1]
        assert (server["state"], server["counters"]["writes"]) == ("running", 1)
        os.kill(pid_of(system), signal.SIGSTOP)  # so that all of them are in flight
        writes = [asyncio.ensure_future(driver.write(n * BLOCK, bytes([n]) * BLOCK)) for n in range(1, 33)]
        await asyncio.sleep(0)
        before = pid_of(system)
        os.kill(before, signal.SIGKILL)
        await until(system, ServerState.TERMINATED)
        assert system.processes["vios1"].reason == "its process was killed (SIGKILL)"
        assert not any(write.done() for write in writes)
        await system.servers.boot("vios1")
        assert pid_of(system) != before
        await asyncio.gather(*writes)
        assert driver.failed == 0

    run(declared(house), scenario)
    image = (house.folder / "disk.img").read_bytes()
    assert [image[n * BLOCK] for n in range(33)] == [ord("a"), *range(1, 33)]


def test_other_path_goes_on_when_a_server_is_killed_and_the_image_stays_locked(house: House) -> None:
    async def scenario(system: System) -> None:
        driver = system.disks[0].driver
        await driver.write(0, b"a" * BLOCK)
        os.kill(pid_of(system), signal.SIGSTOP)
        write = asyncio.ensure_future(driver.write(BLOCK, b"b" * BLOCK))
        await asyncio.sleep(0)
        os.kill(pid_of(system), signal.SIGKILL)
        await asyncio.wait_for(write, 20)
        with pytest.raises(ImageBusy):
            open_image(house.folder / "disk.img")
        await until(system, ServerState.TERMINATED)
        await system.servers.boot("vios1")
        os.kill(pid_of(system, "vios2"), signal.SIGKILL)
        await until(system, ServerState.TERMINATED, "vios2")
        await asyncio.wait_for(driver.write(2 * BLOCK, b"c" * BLOCK), 20)
        assert driver.failed == 0

    run(declared(house, TWO_PATHS), scenario)
    assert (house.folder / "disk.img").read_bytes()[: 3 * BLOCK : BLOCK] == b"abc"


def test_disks_come_grow_and_go_at_a_server_in_a_process(house: House) -> None:
    more = house.image("more.img", MIB)

    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", {"image": str(more)})
        await system.plug.resize(disk, 2 * MIB)
        assert disk.driver.capacity == 2 * MIB
        await disk.driver.write(2 * MIB - BLOCK, b"z" * BLOCK)
        await system.plug.detach(disk)
        open_image(more).close()
        with pytest.raises(LocalError, match=r"^disk: image .*more.img is in use"), open_image(more):
            await system.plug.attach("client1", {"image": str(more)})
        os.kill(pid_of(system), signal.SIGKILL)
        await until(system, ServerState.TERMINATED)
        with pytest.raises(LocalError, match=r"^VIO server vios1 is terminated$"):
            await system.plug.attach("client1", {"image": str(more)})

    run(declared(house), scenario)
    assert more.read_bytes()[-BLOCK:] == b"z" * BLOCK


def test_server_that_is_killed_while_it_should_let_a_disk_go_keeps_nothing_of_it(house: House) -> None:
    async def scenario(system: System) -> None:
        (disk,) = system.disks
        os.kill(pid_of(system), signal.SIGSTOP)
        detaching = asyncio.ensure_future(system.plug.detach(disk, force=True))
        await asyncio.sleep(0.1)
        assert not detaching.done()
        os.kill(pid_of(system), signal.SIGKILL)
        await detaching
        assert not system.disks
        await until(system, ServerState.TERMINATED)
        await system.servers.boot("vios1")
        await system.plug.attach("client1", {"image": str(house.folder / "disk.img")})

    run(declared(house), scenario)


def test_qcow2_of_a_server_that_is_killed_is_opened_by_its_successor(house: House) -> None:
    file = declared(house, ONE.replace('"disk.img"', '"disk.qcow2"\nformat = "qcow2"'))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", house.folder / "disk.qcow2", "4M"], check=True)

    async def scenario(system: System) -> None:
        driver = system.disks[0].driver
        await driver.write(0, b"a" * BLOCK)
        await driver.flush()
        os.kill(pid_of(system), signal.SIGKILL)
        await until(system, ServerState.TERMINATED)
        await system.servers.boot("vios1")
        assert await driver.read(0, BLOCK) == b"a" * BLOCK

    run(file, scenario)


def test_commands_show_terminate_and_activate_the_process(house: House) -> None:
    process = house.up(declared(house).name)
    client = PlainNbd(house.folder / "one.sock")
    try:
        assert client.write(0, b"x" * BLOCK)
        (vios,) = json.loads(house.ok("ps", "--json"))["vios"]
        assert f"VIO server vios1, process {vios['pid']}" in house.ok("ps")
        assert vios["redirect"] is False
        assert house.refused("save", "client1", "saved").startswith("client1 has a disk of vios1, which is a process")
        assert house.ok("terminate", "vios1") == "vios1 is terminated; powervio activate vios1 starts it again\n"
        assert not lives(vios["pid"])
        assert "VIO server vios1 is terminated: its process was killed (SIGKILL)" in house.ok("ps")
        assert house.ok("activate", "vios1") == "vios1 is running\n"
        assert client.write(BLOCK, b"y" * BLOCK)
    finally:
        client.close()
    assert house.end(process) == "stopping; a second Ctrl-C ends at once\n"
    assert (house.folder / "disk.img").read_bytes()[: 2 * BLOCK : BLOCK] == b"xy"


def test_process_ends_with_a_hypervisor_that_is_killed_or_cannot_start(house: House) -> None:
    process = house.up(declared(house).name)
    (vios,) = json.loads(house.ok("ps", "--json"))["vios"]
    process.kill()
    process.wait()
    wait_for(lambda: not lives(vios["pid"]))
    # its last thread may end, and let go of the image, after its first
    open_image(house.folder / "disk.img", wait=10.0).close()
    with open_image(house.folder / "disk.img"):
        assert "disk.img is in use" in house.refused("up", "s.toml")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            '[[lpar.rng]]\nvios = "vios1"\n',
            "lpar[0].rng[0].vios: vios1 is a process of its own, and serves disks only; expected another one",
        ),
        (
            '[[vios]]\nname = "vios2"\nprocess = true\nthread = false\n',
            "vios[1].thread: a VIO server in a process of its own has a thread of its own",
        ),
        ('[[vios]]\nname = "vios2"\nprocess = 1\n', "vios[1].process: expected true or false, found 1"),
    ],
)
def test_mistake_about_a_process_is_told(house: House, more: str, problem: str) -> None:
    declared(house)
    with pytest.raises(LocalError) as caught:
        parse(ONE + more, "s.toml", house.folder)
    assert str(caught.value) == f"s.toml: {problem}"
