"""Client partitions that are saved and restored: inside the test's process, and with fio over a killed system."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import threading
import zlib
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from powervio.errors import LocalError
from powervio.storage.image import Image, open_image
from powervio.system import moves, saved_file
from powervio.system.load import load
from powervio.system.saved_file import SavedFile
from powervio.system.served import ServedDevice
from powervio.system.system import System
from powervio.system.vterm import ServedVterm

from .harness import House, digest, program, run, wait_for

MIB = 1 << 20

DECLARED = """
[[vios]]
name = "vios1"
thread = {thread}
[[lpar]]
name = "client1"
memory = "16M"
[[lpar.disk]]
vios = "vios1"
image = "a.img"
nbd = "a.sock"
[[lpar.console]]
vios = "vios1"
socket = "console.sock"
[[lpar.console]]
vios = "vios1"
type = "vterm"
socket = "vterm.sock"
[[lpar.rng]]
vios = "vios1"
[[lpar]]
name = "client2"
memory = "8M"
"""


@pytest.fixture(params=["true", "false"], ids=["threads", "one-thread"])
def file(request: pytest.FixtureRequest, house: House) -> Path:
    return declare(house, request.param)


@pytest.fixture
def threads(house: House) -> Path:
    return declare(house, "true")


def declare(house: House, thread: str) -> Path:
    for name in ("a.img", "b.img"):
        house.image(name, MIB)
    path = house.folder / "s.toml"
    path.write_text(DECLARED.format(thread=thread))
    return path


def saved(file: Path) -> Path:
    return file.parent / "client1.save"


def numbers(system: System) -> list[tuple[Any, ...]]:
    """What the partition knows of its adapters, and at its VIO server how many there are."""
    partition = system.partitions["client1"]
    found: list[tuple[Any, ...]] = [
        (adapter.slot, adapter.interrupt, adapter.node.windows) for adapter in partition.adapters.values()
    ]
    return [*sorted(found), (len(system.partitions["vios1"].adapters),)]


async def read(path: Path, length: int) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    data = await reader.readexactly(length)
    writer.close()
    return data


def test_partition_goes_on_with_its_memory_its_numbers_and_what_was_on_its_way(file: Path) -> None:
    async def scenario(system: System) -> None:
        free = system.kernels["vios1"].pages.free_bytes
        mapped = numbers(system)
        memory = system.partitions["client1"].memory
        memory[15 * MIB : 15 * MIB + 9] = b"remembers"
        await system.disks[0].driver.write(4096, b"d" * 4096)
        console, vterm, _ = system.devices
        console.find_port("0").to_driver.put(b"typed before")
        vterm.find_port("0").to_driver.put(b"typed on the other")
        assert isinstance(console, ServedDevice)
        assert isinstance(vterm, ServedVterm)
        terminal = vterm.driver.port
        await _until(lambda: len(console.driver.port(0).incoming) == 12)
        await _until(lambda: len(terminal.incoming) == 18)
        console.driver.port(0).outgoing.put(b"printed before")
        await _until(lambda: len(console.find_port("0").from_driver) == 14)

        size = await system.moves.save("client1", saved(file))
        assert saved(file).stat().st_size == size
        assert saved(file).stat().st_mode & 0o777 == 0o600
        assert [lpar["name"] for lpar in system.report()["lpar"]] == ["client2"]
        assert system.report()["adapters"] == []
        assert list(system.partitions["vios1"].adapters) == []
        assert not (file.parent / "a.sock").exists()
        open_image(file.parent / "a.img").close()

        assert await system.moves.restore(saved(file)) == "client1"
        assert numbers(system) == mapped
        memory = system.partitions["client1"].memory
        assert bytes(memory[15 * MIB : 15 * MIB + 9]) == b"remembers"
        buffer = await system.disks[0].driver.read(4096, 4096)
        assert buffer == b"d" * 4096
        assert await read(file.parent / "console.sock", 12) == b"typed before"
        assert await read(file.parent / "vterm.sock", 18) == b"typed on the other"
        assert system.devices[0].find_port("0").from_driver.take(100) == b"printed before"
        assert abs(system.kernels["vios1"].pages.free_bytes - free) <= MIB  # nothing of the first life is kept
        await system.moves.save("client1", file.parent / "again.save")
        await system.moves.restore(file.parent / "again.save")
        assert numbers(system) == mapped

    run(file, scenario)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_server_memory_is_the_same_after_many_moves(threads: Path) -> None:
    async def scenario(system: System) -> None:
        free = []
        for turn in range(4):
            path = threads.parent / f"{turn}.save"
            await system.moves.save("client1", path)
            free.append(system.kernels["vios1"].pages.free_bytes)
            await system.moves.restore(path)
        assert free[1:] == free[:-1]
        assert len(system.hypervisor.partitions) == 3

    run(threads, scenario)


def test_disk_that_was_attached_is_saved_with_its_slot(threads: Path) -> None:
    async def scenario(system: System) -> None:
        folder = threads.parent
        options = {"image": str(folder / "b.img"), "nbd": str(folder / "b.sock"), "slot": 77}
        disk = await system.plug.attach("client1", options)
        await system.plug.detach(system.disks[0])
        await disk.driver.write(0, b"b" * 512)
        await system.moves.save("client1", saved(threads))
        await system.moves.restore(saved(threads))
        (disk,) = system.disks
        assert (disk.name, disk.declared.image) == ("client1/77", str(folder / "b.img"))
        assert await disk.driver.read(0, 512) == b"b" * 512
        await system.plug.detach(disk)

    run(threads, scenario)


def test_disk_of_two_servers_is_saved_with_both_paths_and_goes_on_when_one_dies(house: House) -> None:
    house.image("a.img", MIB)
    file = house.folder / "s.toml"
    file.write_text(
        '[[vios]]\nname = "vios1"\n[[vios]]\nname = "vios2"\n[[lpar]]\nname = "client1"\n[[lpar.disk]]\n'
        'vios = ["vios1", "vios2"]\nimage = "a.img"\n'
    )

    async def scenario(system: System) -> None:
        await system.disks[0].driver.write(0, b"x" * 512)
        slots = [path.client_adapter.slot for path in system.disks[0].paths]
        await system.moves.save("client1", saved(file))
        assert [len(system.partitions[name].slots) for name in ("vios1", "vios2")] == [0, 0]
        await system.moves.restore(saved(file))
        (disk,) = system.disks
        assert [path.client_adapter.slot for path in disk.paths] == slots
        await system.servers.terminate("vios1")
        with pytest.raises(LocalError, match="VIO server vios1 is terminated"):
            await system.moves.save("client1", file.parent / "again.save")
        assert await disk.driver.read(0, 512) == b"x" * 512
        await system.servers.boot("vios1")
        await system.moves.save("client1", file.parent / "again.save")

    run(file, scenario)


def test_image_that_somebody_wrote_to_is_not_gone_on_with_unless_forced(threads: Path) -> None:
    async def scenario(system: System) -> None:
        await system.moves.save("client1", saved(threads))
        with (threads.parent / "a.img").open("r+b") as image:
            image.write(b"!")
        with pytest.raises(LocalError, match=r"a\.img was changed after the partition was saved"):
            await system.moves.restore(saved(threads))
        assert sorted(system.partitions) == ["client2", "vios1"]
        await system.moves.restore(saved(threads), force=True)
        await system.moves.save("client1", threads.parent / "later.save")
        with pytest.raises(LocalError, match="was changed after"):
            await system.moves.restore(saved(threads))  # the partition went on from it before

    run(threads, scenario)


def test_save_that_cannot_be_leaves_the_partition_running(threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(system: System) -> None:
        with pytest.raises(LocalError, match='there is no client partition "x"; there are: client1, client2'):
            await system.moves.save("x", saved(threads))
        with pytest.raises(LocalError, match=r"the folder /no/folder does not exist"):
            await system.moves.save("client1", Path("/no/folder/x"))
        with pytest.raises(LocalError, match=r"s\.toml exists already"):
            await system.moves.save("client1", threads)
        before = (await asyncio.open_unix_connection(threads.parent / "a.sock"))[1]
        sessions = system.disks[0].client.sessions

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(LocalError, match=r"client1\.save cannot be written: No space left on device"):
                await system.moves.save("client1", saved(threads))
        assert sorted(path.name for path in threads.parent.iterdir() if "save" in path.name) == []
        await system.disks[0].driver.write(0, b"goes on" + bytes(505))
        assert system.disks[0].client.sessions == sessions + 1
        assert await read_nothing_but_greeting(threads.parent / "a.sock")
        before.close()
        await system.moves.save("client1", saved(threads))

    run(threads, scenario)


async def read_nothing_but_greeting(path: Path) -> bool:
    return (await read(path, 18))[:8] == b"NBDMAGIC"


def test_request_that_does_not_end_keeps_a_partition_from_being_saved(
    threads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    flush = Image.flush

    def slow(image: Image) -> None:
        gate.wait(30)
        flush(image)

    async def scenario(system: System) -> None:
        flushing = asyncio.ensure_future(system.disks[0].driver.flush())
        await asyncio.sleep(0.05)
        with pytest.raises(LocalError, match=r"client1/2: 1 requests did not end within 0.1 s \(the server is "):
            await system.moves.save("client1", saved(threads))
        gate.set()
        await flushing
        await system.moves.save("client1", saved(threads))

    monkeypatch.setattr(Image, "flush", slow)
    monkeypatch.setattr(moves, "QUIET_LIMIT", 0.1)
    run(threads, scenario)


def test_what_happens_to_a_partition_happens_one_after_the_other(threads: Path) -> None:
    async def scenario(system: System) -> None:
        options = {"image": str(threads.parent / "b.img")}
        saving = asyncio.ensure_future(system.moves.save("client1", saved(threads)))
        await asyncio.sleep(0)
        for other in (
            system.moves.save("client1", threads.parent / "other.save"),
            system.plug.attach("client1", options),
            system.plug.detach(system.disks[0]),
            system.plug.resize(system.disks[0], 2 * MIB),
        ):
            with pytest.raises(LocalError, match="client1 is being saved or restored"):
                await other
        await saving
        attaching = asyncio.ensure_future(system.plug.attach("client2", options))
        await asyncio.sleep(0)
        with pytest.raises(LocalError, match="a disk is being attached or detached"):
            await system.moves.save("client2", threads.parent / "other.save")
        await attaching

    run(threads, scenario)


class Gate:
    """Holds a call of another thread until the test lets it go on."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.reached, self._go = threading.Event(), threading.Event()
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self._go.wait(10)
        return self._call(*arguments)

    def go(self) -> None:
        self._go.set()


def test_vio_server_stays_while_a_partition_is_saved_or_restored(
    threads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the partition would be in the file, and half ended here."""
    write, read_memory = Gate(saved_file.write), Gate(SavedFile.read_memory)
    monkeypatch.setattr(saved_file, "write", write)
    monkeypatch.setattr(SavedFile, "read_memory", partialmethod(read_memory))

    async def scenario(system: System) -> None:
        for gate, move in (
            (write, system.moves.save("client1", saved(threads))),
            (read_memory, system.moves.restore(saved(threads))),
        ):
            moving = asyncio.ensure_future(move)
            await asyncio.to_thread(gate.reached.wait, 10)
            with pytest.raises(LocalError, match="client1 is being saved or restored"):
                await system.servers.terminate("vios1")
            gate.go()
            await moving
        await system.servers.terminate("vios1")

    run(threads, scenario)


def test_whoever_asked_may_leave_and_the_move_is_still_alone(threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read_memory = Gate(saved_file.write), Gate(SavedFile.read_memory)
    monkeypatch.setattr(saved_file, "write", write)
    monkeypatch.setattr(SavedFile, "read_memory", partialmethod(read_memory))

    async def scenario(system: System) -> None:
        for gate, move, there in (
            (write, system.moves.save("client1", saved(threads)), False),
            (read_memory, system.moves.restore(saved(threads)), True),
        ):
            moving = asyncio.ensure_future(move)
            await asyncio.to_thread(gate.reached.wait, 10)
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving
            with pytest.raises(LocalError, match="client1 is being saved or restored"):
                await system.moves.save("client1", threads.parent / "other.save")
            gate.go()
            await wait_until_idle(system)
            assert ("client1" in system.partitions) is there
        assert system.disks_of("client1")[0].nbd is not None

    run(threads, scenario)


async def wait_until_idle(system: System) -> None:
    def idle() -> bool:
        try:
            system.moves.check_all_idle()
        except LocalError:
            return False
        return True

    await _until(idle)


def test_operator_is_told_when_the_partition_leaves(threads: Path) -> None:
    async def scenario(system: System) -> None:
        ports = [device.find_port("0") for device in system.devices[:2]]
        told: list[Any] = []
        for port in ports:
            port.attach()
            port.on_change = partial(told.append, port)
        await system.moves.save("client1", saved(threads))
        assert all(port.removed and port in told for port in ports)

    run(threads, scenario)


def test_system_that_stops_while_a_partition_is_saved_waits_for_it(threads: Path) -> None:
    async def scenario(system: System) -> None:
        saving = asyncio.ensure_future(system.moves.save("client1", saved(threads)))
        await asyncio.sleep(0.001)
        await system.stop()
        assert saving.done()
        await saving

    run(threads, scenario)
    with SavedFile(saved(threads)) as found:
        assert found.manifest.partition.name == "client1"


# -- restoring what does not fit


def spoilt(file: Path, change: Callable[[saved_file.Manifest], object]) -> Path:
    """The saved file with another manifest, its checksum right."""
    with SavedFile(saved(file)) as found:
        manifest = found.manifest
        rest = found._file.read()
    change(manifest)
    data = msgspec.msgpack.encode(manifest)
    path = file.parent / "spoilt.save"
    path.write_bytes(
        saved_file._HEAD.pack(saved_file.MAGIC, saved_file.VERSION, len(data), zlib.crc32(data)) + data + rest
    )
    return path


def _drop_adapter(manifest: saved_file.Manifest) -> None:
    manifest.partition.adapters.pop()


def _lose_image(manifest: saved_file.Manifest) -> None:
    manifest.lpar["disk"][0]["image"] = "/no/image"
    manifest.devices[0].image = None


def _be_client2(manifest: saved_file.Manifest) -> None:
    manifest.lpar["name"] = manifest.partition.name = "client2"


def _shrink(manifest: saved_file.Manifest) -> None:
    manifest.lpar["memory"] = manifest.partition.memory = 4096


def _widen(manifest: saved_file.Manifest) -> None:
    manifest.partition.adapters[0].window = 4096


def _forget_memory(manifest: saved_file.Manifest) -> None:
    manifest.partition.memory = 8 << 20


MISFITS: dict[str, tuple[Callable[[saved_file.Manifest], object], str]] = {
    "another server": (
        lambda m: m.lpar["disk"][0].update(vios="vios9"),
        r'client1 cannot go on here: lpar.disk\[0\].vios: "vios9" is not one of the VIO servers',
    ),
    "no image": (_lose_image, r"lpar.disk\[0\].image: /no/image does not exist"),
    "socket of another": (lambda m: m.lpar["disk"][0].update(nbd="/tmp"), r"/tmp exists and is not a socket"),
    "unknown option": (lambda m: m.lpar.update(cpus=4), r"lpar.cpus: there is no such option"),
    "another name": (lambda m: m.lpar.update(name="other"), "the partition has two names"),
    "the name of another": (_be_client2, "a partition named client2 is running here"),
    "fewer devices": (lambda m: m.devices.pop(), r"the file does not say what became of every \[\[lpar.rng"),
    "more devices": (lambda m: m.lpar["rng"].clear(), r"the file has an adapter in slot 4 without \[\[lpar.rng"),
    "an adapter less": (_drop_adapter, r"the file does not say what became of every"),
    "another window": (_widen, "slot 2 of partition client1: LIOBN, window"),
    "not a block device": (lambda m: m.devices[0].device.clear(), "not the state of a block device"),
    "not a console": (lambda m: m.devices[1].device.clear(), "not the state of a console"),
    "not a driver's": (lambda m: m.devices[1].driver.clear(), "not the state of a console's driver"),
    "not a terminal": (lambda m: m.devices[2].driver.clear(), "not the state of a virtual terminal"),
    "memory that is too small": (_shrink, "lpar.memory: 4K; expected 8M"),
    "two sizes of memory": (_forget_memory, "is damaged: a piece of"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_restore_of_what_does_not_fit_says_so_and_leaves_nothing(threads: Path, what: str) -> None:
    change, words = MISFITS[what]

    async def scenario(system: System) -> None:
        system.partitions["client1"].memory[9 * MIB] = 1
        await system.moves.save("client1", saved(threads))
        free = system.kernels["vios1"].pages.free_bytes
        path = spoilt(threads, change)
        with pytest.raises(LocalError, match=words):
            await system.moves.restore(path)
        assert sorted(system.partitions) == sorted(system.kernels) == ["client2", "vios1"]
        assert [lpar.name for lpar in system.config.lpar] == ["client2"]
        assert list(system.partitions["vios1"].slots) == []
        assert len(system.hypervisor.partitions) == 2
        assert system.kernels["vios1"].pages.free_bytes == free
        await system.moves.restore(saved(threads))

    run(threads, scenario)


def test_restore_is_undone_when_a_socket_cannot_be_made(threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(system: System) -> None:
        await system.moves.save("client1", saved(threads))
        folder = threads.parent / "vterm.sock"
        check = SavedFile.read_memory

        def late(file: SavedFile, memory: memoryview) -> int:
            folder.mkdir()  # after everything was looked at
            return check(file, memory)

        with monkeypatch.context() as patch:
            patch.setattr(SavedFile, "read_memory", late)
            with pytest.raises(LocalError, match=r"vterm\.sock"):
                await system.moves.restore(saved(threads))
        folder.rmdir()
        assert sorted(system.partitions) == ["client2", "vios1"]
        assert list(system.partitions["vios1"].slots) == []
        open_image(threads.parent / "a.img").close()
        await system.moves.restore(saved(threads))

    run(threads, scenario)


# -- as a user does it


def job_of(log: Path) -> dict[str, Any]:
    report = log.read_text()
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    found: dict[str, Any] = job
    return found


def test_fio_goes_on_in_another_process_and_verifies(house: House) -> None:
    """QEMU's NBD client stands between: it connects again, and sends again what had no answer."""
    house.image("disk.img", 16 * MIB)
    file = house.declare()
    before = house.up(file)
    between = house.folder / "between.sock"
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=nbd,node-name=n,server.type=unix,server.path={house.folder}/one.sock,reconnect-delay=60",
            *("--nbd-server", f"addr.type=unix,addr.path={between}"),
            *("--export", "type=nbd,id=e,node-name=n,writable=on,name="),
        ]
    )
    log = house.folder / "fio.json"
    try:
        wait_for(between.exists)
        words = ["fio", "--name=verify", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={between}", "--size=16m"]
        words += ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1"]
        words += ["--verify_state_save=0", "--time_based", "--runtime=9", "--output-format=json"]
        with log.open("w") as output:
            fio = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        wait_for(lambda: house.client()["requests"] > 500)
        assert re.fullmatch(r"client1 is saved in c1\.save \(\d+ bytes\)\n", house.ok("save", "client1", "c1.save"))
        assert fio.poll() is None
        before.send_signal(signal.SIGKILL)
        before.communicate()
        said = house.ok("up", "-d", file, "--restore", "c1.save")
        assert f"client1: goes on from {house.folder}/c1.save" in said
        wait_for(lambda: house.client()["requests"] > 500)
        assert fio.wait(60) == 0
        client = house.client()
        assert (client["failed"], client["rejected"], client["sessions"]) == (0, 0, 1)
    finally:
        daemon.kill()
        daemon.wait()
    job = job_of(log)
    assert job["error"] == 0
    assert job["read"]["total_ios"] > 0
    copy = house.folder / "copy.img"
    program("nbdcopy", house.uri(), str(copy))
    house.ok("down")
    assert digest(house.folder / "disk.img") == digest(copy)


def test_save_and_restore_by_the_command_line(house: House) -> None:
    house.image("disk.img", MIB)
    file = house.declare(more='[[lpar.console]]\nvios = "vios1"\nexec = "cat"')
    house.up(file)
    program("qemu-io", "-f", "raw", "-c", "write -P 5 0 64k", house.uri())
    house.ok("save", "client1", "c1.save")
    assert house.ps()["adapters"] == []
    said = house.ok("restore", "c1.save")
    assert said == f"client1 goes on\n    nbd+unix:///?socket={house.folder}/one.sock\n"
    program("qemu-io", "-f", "raw", "-c", "read -P 5 0 64k", house.uri())
    assert house.refused("restore", "c1.save").startswith("a partition named client1 is running here")
    assert house.refused("save", "client1", "c1.save") == f"{house.folder}/c1.save exists already"
    assert house.refused("restore", file) == f"{house.folder}/{file} is not a saved partition"
    assert house.refused("restore", "x") == f"{house.folder}/x cannot be read: No such file or directory"
    assert house.refused("save", "x", "y") == 'there is no client partition "x"; there are: client1'
    program("qemu-io", "-f", "raw", "-c", "write -P 6 0 64k", house.uri())
    house.ok("down")
    assert house.refused("up", file, "--restore", "c1.save").startswith(f"{house.folder}/disk.img was changed after")
    assert house.refused("up", file, "--restore", "x") == f"{house.folder}/x cannot be read: No such file or directory"
    assert house.leftovers() == []


def test_config_of_the_file_that_was_saved_is_complete(threads: Path) -> None:
    """Every option of the section comes back as it was, with slots for those that had none."""

    async def scenario(system: System) -> None:
        (before,) = (lpar for lpar in system.config.lpar if lpar.name == "client1")
        await system.moves.save("client1", saved(threads))
        await system.moves.restore(saved(threads))
        (after,) = (lpar for lpar in system.config.lpar if lpar.name == "client1")
        assert [disk.slot for disk in after.disk] == [2]
        assert dataclasses.asdict(load(threads))["name"] == system.config.name
        for name in before.__struct_fields__:
            one, other = getattr(before, name), getattr(after, name)
            if isinstance(one, list):
                one, other = [[_without_slot(section) for section in part] for part in (one, other)]
            assert one == other

    run(threads, scenario)


def _without_slot(section: Any) -> Any:
    return replace(section, slot=None)
