"""Disks of two VIO servers, and VIO servers that are terminated and boot again: inside the test's process, and with fio
under `powervio up`."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from powervio.drivers.multipath_disk import MultipathDriver
from powervio.errors import LocalError
from powervio.native.vterm import VtermState
from powervio.phyp.partition import Partition
from powervio.storage.image import Image, ImageBusy, open_image
from powervio.storage.share import ImageShare
from powervio.system import servers as servers_module
from powervio.system.load import ConfigError, load, parse
from powervio.system.servers import ServerState
from powervio.system.system import System

from .harness import House, program, wait_for

MIB = 1 << 20
BLOCK = 4096
FIO_SIZE = 20 * MIB
EXAMPLE = Path(__file__).parents[2] / "examples" / "multipath.toml"
Scenario = Callable[[System], Awaitable[None]]

DECLARED = """
[[vios]]
name = "vios1"
thread = {thread}
[[vios]]
name = "vios2"
thread = {thread}
[[lpar]]
name = "client1"
memory = "32M"
[[lpar.disk]]
vios = {vios}
image = "a.img"
nbd = "a.sock"
{more}
"""


def declare(house: House, more: str = "", *, thread: str = "true", vios: str = '["vios1", "vios2"]') -> Path:
    house.image("a.img", 4 * MIB)
    path = house.folder / "s.toml"
    path.write_text(DECLARED.format(thread=thread, vios=vios, more=more))
    return path


@pytest.fixture(params=["true", "false"], ids=["threads", "one-thread"])
def thread(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["failover", "round-robin"])
def policy(request: pytest.FixtureRequest) -> str:
    return f'policy = "{request.param}"\n'


def held() -> tuple[int, list[str]]:
    """What this process holds: open files, and threads."""
    gc.collect()
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("partition-"))
    return len(os.listdir("/proc/self/fd")), names


def run(file: Path, scenario: Scenario) -> None:
    """Run it with a system of this file; nothing of it may be left afterwards, and the images are free."""

    async def whole() -> None:
        system = System(load(file))
        await system.start()
        try:
            await scenario(system)
        finally:
            await system.stop()

    before = held()
    asyncio.run(asyncio.wait_for(whole(), 60))
    assert held() == before
    assert not list(file.parent.glob("*.sock"))
    for image in file.parent.glob("*.img"):
        open_image(image).close()  # raises if it is still locked


def states(system: System) -> list[str]:
    """Of the first disk's paths."""
    driver = system.disks[0].driver
    assert isinstance(driver, MultipathDriver)
    return [path.state.value for path in driver.paths]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# A disk with two paths


def test_disk_goes_on_while_either_server_is_terminated_and_boots(house: House, thread: str, policy: str) -> None:
    blocks = 32

    async def scenario(system: System) -> None:
        driver = system.disks[0].driver
        rounds = [0] * blocks
        stop = False

        async def keep_writing(block: int) -> None:
            while not stop:
                content = os.urandom(BLOCK)
                await driver.write(block * BLOCK, content)
                assert await driver.read(block * BLOCK, BLOCK) == content
                rounds[block] += 1

        writers = [asyncio.ensure_future(keep_writing(block)) for block in range(blocks)]
        for name in ("vios1", "vios2", "vios1"):
            await until(lambda: min(rounds) > 0)
            await system.servers.terminate(name)
            assert system.servers.state(name) is ServerState.TERMINATED
            rounds[:] = [0] * blocks
            await until(lambda: min(rounds) > 1)  # all of them go on without it
            await system.servers.boot(name)
            await until(lambda: set(states(system)) <= {"active", "standby"})
            rounds[:] = [0] * blocks
        await until(lambda: min(rounds) > 1)
        stop = True
        await asyncio.gather(*writers)
        await driver.flush()
        assert driver.failed == 0
        assert all(path.client.sessions > 1 for path in system.disks[0].paths)

    run(declare(house, policy, thread=thread), scenario)


def test_preferred_path_takes_over_again(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        assert states(system) == ["active", "standby"]
        await system.servers.terminate("vios1")
        await until(lambda: states(system) == ["waiting", "active"])
        await system.disks[0].driver.write(0, b"x" * BLOCK)
        assert system.disks[0].paths[1].device.counters.writes == 1
        await system.servers.boot("vios1")
        await until(lambda: states(system) == ["active", "standby"])
        await system.disks[0].driver.write(0, b"y" * BLOCK)
        assert system.disks[0].paths[0].device.counters.writes == 1

    run(declare(house, thread=thread), scenario)


def test_requests_wait_while_both_are_down(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        disk = system.disks[0]
        await asyncio.gather(*(disk.driver.read(at * BLOCK, BLOCK) for at in range(8)))
        for name in ("vios1", "vios2"):
            await system.servers.terminate(name)
        writes = [asyncio.ensure_future(disk.driver.write(at * BLOCK, bytes([at]) * BLOCK)) for at in range(8)]
        await asyncio.sleep(0.1)  # the buffers were made before; without one there would be nothing to submit
        assert not any(write.done() for write in writes)
        (entry,) = [entry for entry in system.report()["adapters"] if entry["role"] == "client"][:1]
        assert entry["path"]["waiting"] == 8
        await system.servers.boot("vios2")
        await asyncio.gather(*writes)
        assert await disk.driver.read(3 * BLOCK, BLOCK) == b"\3" * BLOCK
        # vios1 stays away, and the system stops all the same

    run(declare(house, thread=thread), scenario)
    assert (house.folder / "a.img").read_bytes()[3 * BLOCK : 4 * BLOCK] == b"\3" * BLOCK


def test_system_with_all_servers_down_stops_and_what_was_acknowledged_is_there(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        await system.disks[0].driver.write(0, b"z" * BLOCK)
        for name in ("vios1", "vios2"):
            await system.servers.terminate(name)

    run(declare(house, thread=thread), scenario)
    assert (house.folder / "a.img").read_bytes()[:BLOCK] == b"z" * BLOCK


# The fence


class SlowImage:
    """Lets the next write of one image wait in the middle, in the thread of its VIO server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: Image) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        original = Image.write_vector
        original_one = Image.write_from

        def wait(image: Image) -> None:
            if image is slow and not self.entered.is_set():
                self.entered.set()
                assert self.go_on.wait(20)

        def write_vector(image: Image, position: int, buffers: list[memoryview]) -> None:
            wait(image)
            original(image, position, buffers)

        def write_from(image: Image, position: int, buffer: memoryview) -> None:
            wait(image)
            original_one(image, position, buffer)

        monkeypatch.setattr(Image, "target", None)  # all data by the methods
        monkeypatch.setattr(Image, "write_vector", write_vector)
        monkeypatch.setattr(Image, "write_from", write_from)


async def ghost_scenario(system: System, monkeypatch: pytest.MonkeyPatch, kill: Callable[[], Awaitable[None]]) -> bytes:
    """Kill vios1 in the middle of a write; write the block again as soon as that is acknowledged; what is there then.

    P1.9: the first write must not land after the second.
    """
    disk = system.disks[0]
    first_image = disk.paths[0].image
    assert isinstance(first_image, Image)
    slow = SlowImage(monkeypatch, first_image)
    first = asyncio.ensure_future(disk.driver.write(0, b"1" * BLOCK))
    await until(slow.entered.is_set)
    killing = asyncio.ensure_future(kill())
    await asyncio.wait({first}, timeout=0.5)  # in the wrong order it is acknowledged now, by the other server
    if first.done():
        await disk.driver.write(0, b"2" * BLOCK)
    slow.go_on.set()
    await first
    await asyncio.wait_for(killing, 20)
    if not first_image.fileno() < 0:
        await system.in_partition("vios1", lambda: None)  # the slow write has ended
    elif await disk.driver.read(0, BLOCK) == b"1" * BLOCK:
        await disk.driver.write(0, b"2" * BLOCK)
    return await disk.driver.read(0, BLOCK)


def test_write_in_flight_at_a_dying_server_never_comes_back_as_a_ghost(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(system: System) -> None:
        told: list[str] = []
        fail = system.hypervisor.fail

        def record(partition: Partition) -> None:
            assert isinstance(image, Image)
            assert image.fileno() == -1  # closed before anybody is told
            told.append(partition.name)
            fail(partition)

        monkeypatch.setattr(system.hypervisor, "fail", record)
        image = system.disks[0].paths[0].image

        async def kill() -> None:
            await system.servers.terminate("vios1")

        assert await ghost_scenario(system, monkeypatch, kill) == b"2" * BLOCK
        assert told == ["vios1"]

    run(declare(house), scenario)


def test_ghost_is_there_when_partners_hear_of_the_death_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the order of `terminate` is for: without it the test above would fail."""

    async def scenario(system: System) -> None:
        async def kill() -> None:
            await asyncio.to_thread(system.hypervisor.fail, system.partitions["vios1"])

        # not even what was written first: the hypervisor has taken the memory that it was written from
        assert await ghost_scenario(system, monkeypatch, kill) != b"2" * BLOCK

    run(declare(house), scenario)


def test_server_that_is_stuck_is_terminated_when_it_can_be(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "TERMINATE_LIMIT", 0.2)

    async def scenario(system: System) -> None:
        disk = system.disks[0]
        image = disk.paths[0].image
        assert isinstance(image, Image)
        slow = SlowImage(monkeypatch, image)
        stuck = asyncio.ensure_future(disk.driver.write(0, b"1" * BLOCK))
        await until(slow.entered.is_set)
        with pytest.raises(LocalError, match="vios1 is still at work on an image; it is terminated when that has"):
            await system.servers.terminate("vios1")
        with pytest.raises(LocalError, match="vios1 is terminating; try again when that is over"):
            await system.servers.boot("vios1")
        # Its path does not answer its check; what comes now goes elsewhere, what it has waits for it.
        await until(lambda: states(system) == ["failed", "active"])
        await disk.driver.write(BLOCK, b"2" * BLOCK)
        assert not stuck.done()
        slow.go_on.set()
        await stuck
        await until(lambda: system.servers.state("vios1") is ServerState.TERMINATED)

    run(declare(house, "check_interval = 0.1"), scenario)


# Locks


def test_image_belongs_to_the_paths_of_one_disk_alone(house: House) -> None:
    async def scenario(system: System) -> None:
        def refused() -> None:
            with pytest.raises(ImageBusy):
                open_image(house.folder / "a.img")
            with pytest.raises(ImageBusy):
                open_image(house.folder / "a.img", read_only=True)
            with pytest.raises(ImageBusy):
                ImageShare(house.folder / "a.img")
            words = ["qemu-io", "-f", "raw", "-c", "read 0 512", str(house.folder / "a.img")]
            said = subprocess.run(words, capture_output=True, text=True, check=False)
            assert said.returncode == 1
            assert "lock" in said.stderr

        await asyncio.to_thread(refused)
        for name in ("vios1", "vios2"):
            await system.servers.terminate(name)
            await asyncio.to_thread(refused)  # its clients' writes are still to come

    run(declare(house), scenario)


def test_share_refuses_another_file_and_outlives_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    share = ImageShare(path, create_size=MIB)
    assert share.size == MIB
    with share.open() as first:
        share.close()
        share.close()
        with pytest.raises(ImageBusy):
            open_image(path)
        first.write_from(0, memoryview(b"x" * 512))
    open_image(path).close()
    with open_image(path) as holder:
        path.rename(tmp_path / "b.img")
        path.write_bytes(bytes(MIB))
        with pytest.raises(LocalError, match=r"a\.img is another file now"):
            open_image(path, share=holder.fileno())


def test_direct_io_in_units_larger_than_a_sector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers would each read, change and write back the same unit."""
    share = ImageShare(tmp_path / "a.img", create_size=MIB)
    for unit, is_refused in ((512, False), (4096, True)):
        monkeypatch.setattr("powervio.storage.direct.DirectFile._probe", lambda self, least, unit=unit: unit)
        if is_refused:
            with pytest.raises(LocalError, match="in units of 4096 bytes there"):
                share.open(direct=True)
        else:
            share.open(direct=True).close()
    share.close()
    open_image(tmp_path / "a.img").close()


# Servers with other devices, and with disks of their own


SINGLE = """
[[lpar.console]]
vios = "vios1"
[[lpar.rng]]
vios = "vios1"
socket = "rng.sock"
[[lpar.console]]
vios = "vios1"
type = "vterm"
"""


def test_disk_of_one_server_waits_for_it(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        disk = system.disks[0]
        await disk.driver.write(0, b"a" * BLOCK)
        await system.servers.terminate("vios1")
        open_image(house.folder / "a.img").close()  # nobody has it now
        writes = [asyncio.ensure_future(disk.driver.write(at * BLOCK, b"b" * BLOCK)) for at in range(1, 5)]
        await asyncio.sleep(0.05)
        assert not any(write.done() for write in writes)
        await system.servers.boot("vios1")
        await asyncio.gather(*writes)
        assert await disk.driver.read(0, 5 * BLOCK) == b"a" * BLOCK + b"b" * 4 * BLOCK

    run(declare(house, thread=thread, vios='"vios1"'), scenario)


def test_consoles_and_random_bytes_come_back(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        async def some_random() -> bytes:
            reader, writer = await asyncio.open_unix_connection(house.folder / "rng.sock")
            got = await asyncio.wait_for(reader.readexactly(16), 10)
            writer.close()
            return got

        first = await some_random()
        operator = system.console("client1", "console")
        operator.attach()
        changes: list[bool] = []
        operator.on_change = lambda: changes.append(operator.removed)
        await system.servers.terminate("vios1")
        assert changes[-1]  # whoever watched there is let go
        await system.servers.boot("vios1")
        assert await some_random() != first
        anew = system.console("client1", "console")
        assert anew is not operator
        anew.attach()
        for device in system.devices:
            assert device.client.running
            assert device.server.state in ("running", VtermState.RUNNING)
        anew.detach()

    run(declare(house, SINGLE, thread=thread, vios='"vios2"'), scenario)


def test_server_whose_image_is_taken_does_not_boot(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        await system.servers.terminate("vios1")
        with open_image(house.folder / "a.img"):
            with pytest.raises(LocalError, match=r"a\.img is in use by this process"):
                await system.servers.boot("vios1")
            assert system.servers.state("vios1") is ServerState.TERMINATED
        await system.servers.boot("vios1")
        await system.disks[0].driver.write(0, b"x" * BLOCK)

    run(declare(house, thread=thread, vios='"vios1"'), scenario)


def test_what_cannot_be_terminated_or_booted_is_refused(house: House) -> None:
    async def scenario(system: System) -> None:
        servers = system.servers
        with pytest.raises(LocalError, match='there is no VIO server "vios9"; expected one of: vios1, vios2'):
            await servers.terminate("vios9")
        with pytest.raises(LocalError, match="VIO server vios1 is running; only one that was terminated can boot"):
            await servers.boot("vios1")
        await servers.terminate("vios1")
        with pytest.raises(LocalError, match="VIO server vios1 is terminated"):
            await servers.terminate("vios1")
        house.image("b.img", MIB)
        with pytest.raises(LocalError, match="VIO server vios1 is terminated"):
            await system.plug.attach("client1", {"vios": ["vios2", "vios1"], "image": str(house.folder / "b.img")})
        assert len(system.disks) == 1

    run(declare(house), scenario)


# Disks that come, go and grow


def test_disk_with_two_paths_is_attached_and_detached(house: House, thread: str) -> None:
    house.image("b.img", MIB)

    async def scenario(system: System) -> None:
        free = {name: kernel.pages.free_bytes for name, kernel in system.kernels.items()}
        for _ in range(2):
            options = {"vios": ["vios2", "vios1"], "image": str(house.folder / "b.img"), "policy": "round-robin"}
            disk = await system.plug.attach("client1", options)
            await disk.driver.write(0, b"x" * MIB)
            assert [path.device.counters.writes > 0 for path in disk.paths] == [True, True]
            assert system.plug.find(disk.names[2]) is disk
            await system.plug.detach(disk)
            open_image(house.folder / "b.img").close()
        assert (house.folder / "b.img").read_bytes() == b"x" * MIB
        assert {name: kernel.pages.free_bytes for name, kernel in system.kernels.items()} == free

    run(declare(house, thread=thread), scenario)


@pytest.mark.parametrize("force", [False, True])
def test_disk_is_detached_while_a_server_is_down(house: House, thread: str, force: bool) -> None:
    async def scenario(system: System) -> None:
        disk = system.disks[0]
        await system.servers.terminate("vios1")
        await disk.driver.write(0, b"x" * BLOCK)
        await system.plug.detach(disk, force=force)
        open_image(house.folder / "a.img").close()
        await system.servers.boot("vios1")
        assert system.disks == []

    run(declare(house, thread=thread), scenario)


def test_both_paths_learn_of_another_size(house: House, thread: str) -> None:
    async def scenario(system: System) -> None:
        disk = system.disks[0]
        for size in (8 * MIB, 2 * MIB):
            await system.plug.resize(disk, size, shrink=True)
            assert [path.driver.capacity for path in disk.paths] == [size, size]
            assert states(system) == ["active", "standby"]
            assert (house.folder / "a.img").stat().st_size == size
        await system.servers.terminate("vios2")
        await system.plug.resize(disk, 6 * MIB)
        await system.servers.boot("vios2")
        await until(lambda: states(system) == ["active", "standby"])
        await system.servers.terminate("vios1")
        await disk.driver.write(6 * MIB - BLOCK, b"e" * BLOCK)
        await system.servers.terminate("vios2")
        with pytest.raises(LocalError, match="none of its VIO servers runs"):
            await system.plug.resize(disk, 8 * MIB)

    run(declare(house, thread=thread), scenario)


def test_limits_hold_for_all_paths_together(house: House) -> None:
    async def scenario(system: System) -> None:
        limits = [path.device.options.limits for path in system.disks[0].paths]
        assert [limit and limit.requests_per_second for limit in limits] == [500, 500]

    run(declare(house, 'requests_per_second = 1000\npolicy = "round-robin"'), scenario)


# Wrong files


@pytest.mark.parametrize(
    ("vios", "more", "expected"),
    [
        ("[]", "", "vios: it is empty; expected a VIO server, or several"),
        ('["vios1", "vios1"]', "", 'vios[1]: "vios1" is there already; expected another VIO server for each path'),
        ('["vios1", "x"]', "", 'vios[1]: "x" is not one of the VIO servers (vios1, vios2)'),
        ('"vios1"', 'policy = "failover"', "policy: it is about several VIO servers; vios names one"),
        ('["vios1"]', "check_interval = 1", "check_interval: it is about several VIO servers; vios names one"),
        ('["vios1", "vios2"]', 'policy = "x"', 'policy: expected "failover" or "round-robin", found "x"'),
        ('["vios1", "vios2"]', "check_interval = 0", "check_interval: expected a number from 0.1 to 3600, found 0"),
        ("[1]", "", "vios[0]: expected a string, found 1"),
        ("1", "", "vios: expected a string or an array of strings, found 1"),
    ],
)
def test_wrong_file_is_explained(house: House, vios: str, more: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(declare(house, more, vios=vios))
    assert caught.value.problems == [f"lpar[0].disk[0].{expected}"]


@pytest.mark.parametrize("kind", ["qcow2", "nbd"])
def test_backings_that_keep_something_of_their_own_are_refused(house: House, kind: str) -> None:
    text = declare(house, 'format = "qcow2"' if kind == "qcow2" else "").read_text()
    if kind == "nbd":
        text = text.replace('"a.img"', '"nbd://localhost/x"')
    else:
        program("qemu-img", "create", "-q", "-f", "qcow2", str(house.folder / "a.img"), "4M")
    with pytest.raises(ConfigError) as caught:
        parse(text, "s.toml", house.folder)
    (problem,) = caught.value.problems
    assert "several VIO servers can serve a raw image; of " in problem


def test_memory_of_every_path_is_counted(house: House) -> None:
    file = declare(house, "queues = 32\nqueue_size = 1024")
    file.write_text(file.read_text().replace('"32M"', '"10M"'))
    with pytest.raises(ConfigError, match=re.escape("lpar[0].memory: 10M; its devices need at least")):
        load(file)
    file.write_text(file.read_text().replace('["vios1", "vios2"]', '"vios1"'))
    load(file)


# As users run it


@pytest.fixture
def busy_house(house: House) -> House:
    house.image("a.img", FIO_SIZE)
    return house


@pytest.mark.parametrize("which", ["failover", "round-robin"])
def test_fio_with_32_writes_in_flight_notices_nothing_of_servers_that_die(busy_house: House, which: str) -> None:
    """Each request completes once or fails with a status; here none fails, and everything that was written is there."""
    house = busy_house
    # The limit keeps fio's 32 requests where they count: with a device, waiting for their turn.
    more = f'policy = "{which}"\ncheck_interval = 0.5\nrequests_per_second = 1200\nburst_requests = 2'
    text = DECLARED.format(thread="true", vios='["vios1", "vios2"]', more=more)
    (house.folder / "s.toml").write_text(text)
    process = house.up("s.toml")
    words = [
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={house.uri('a')}", "--rw=randwrite", "--bs=4k"),
        *("--iodepth=32", f"--size={FIO_SIZE}", "--verify=crc32c", "--verify_fatal=1"),
        *("--verify_state_save=0", "--output-format=json"),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        wait_for(lambda: house.client()["requests"] > 500)
        for name in ("vios1", "vios2"):
            assert f"{name} is terminated" in house.ok("terminate", name)
            assert f"VIO server {name} is terminated" in house.ok("ps")
            assert house.ok("activate", name) == f"{name} is running\n"
        output, _ = load.communicate(timeout=90)
        assert load.returncode == 0, output
    report = json.loads(output[output.index("{") :])
    (job,) = report["jobs"]
    assert job["error"] == 0
    assert job["write"]["total_ios"] == FIO_SIZE // 4096
    clients = [entry for entry in house.ps()["adapters"] if entry["role"] == "client"]
    assert [entry["sessions"] for entry in clients] == [2, 2]
    assert clients[0]["resubmitted"] > 0
    assert [entry["failed"] for entry in clients] == [0, 0]
    assert sum(entry["requests"] for entry in clients) >= job["write"]["total_ios"] + job["read"]["total_ios"]
    assert {entry["path"]["state"] for entry in clients} <= {"active", "standby"}
    assert {vios["state"] for vios in house.ps()["vios"]} == {"running"}
    house.end(process)


def test_commands_say_what_is_wrong(house: House) -> None:
    process = house.up(declare(house).name)
    assert house.refused("terminate", "x") == 'there is no VIO server "x"; expected one of: vios1, vios2'
    assert house.refused("boot", "vios1") == "VIO server vios1 is running; only one that was terminated can boot"
    house.ok("attach", "client1", "--vios", "vios2", "--vios", "vios1", "--image", "b.img", "--size", "1M")
    assert "(failover, 2 paths)" in house.ok("ps")
    assert house.ok("detach", "client1/4") == f"client1/4: {house.folder / 'b.img'} is detached\n"
    house.end(process)


def test_example_goes_on_without_its_first_server(house: House) -> None:
    (house.folder / "multipath.toml").write_text(EXAMPLE.read_text())
    process = house.up("multipath.toml")
    uri = f"nbd+unix:///?socket={house.folder / 'client1.sock'}"
    program("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", uri)
    house.ok("terminate", "vios1")
    program("qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "write -P 2 1M 1M", "-c", "flush", uri)
    house.ok("boot", "vios1")
    house.ok("terminate", "vios2")
    program("qemu-io", "-f", "raw", "-c", "read -P 2 1M 1M", uri)
    house.end(process)
