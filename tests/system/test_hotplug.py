"""Disks that come and go while a system runs: inside the test's process, and with fio under `powervio up`."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.papr import fdt
from powervio.papr.devicetree import virtual_adapters
from powervio.phyp.port import PartitionPort
from powervio.storage.image import Image, open_image
from powervio.system import hotplug
from powervio.system import system as system_module
from powervio.system.disks import ServedDisk
from powervio.system.system import System
from powervio.virtio.queue import Buffer

from .harness import House, PlainNbd, digest, held, program, run, wait_for

MIB = 1 << 20

DECLARED = """
[[vios]]
name = "vios1"
thread = {thread}
[[vios]]
name = "vios2"
[[lpar]]
name = "client1"
memory = "8M"
[[lpar.disk]]
vios = "vios1"
image = "a.img"
nbd = "a.sock"
"""


@pytest.fixture(params=["true", "false"], ids=["threads", "one-thread"])
def file(request: pytest.FixtureRequest, house: House) -> Path:
    for name in ("a.img", "b.img"):
        house.image(name, MIB)
    path = house.folder / "s.toml"
    path.write_text(DECLARED.format(thread=request.param))
    return path


@pytest.fixture
def threads(house: House) -> Path:
    for name in ("a.img", "b.img"):
        house.image(name, MIB)
    path = house.folder / "s.toml"
    path.write_text(DECLARED.format(thread="true"))
    return path


def options(file: Path, name: str = "b", **more: Any) -> dict[str, Any]:
    folder = file.parent
    return {"vios": "vios1", "image": str(folder / f"{name}.img"), "nbd": str(folder / f"{name}.sock"), **more}


def free_pages(system: System) -> dict[str, int]:
    return {name: kernel.pages.free_bytes for name, kernel in system.kernels.items()}


def test_attached_disk_serves_and_detached_one_is_gone(file: Path) -> None:
    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file, slot=9))
        assert disk.name == "client1/9"
        await disk.driver.write(4096, b"x" * 8192)
        assert [entry["slot"] for entry in system.report()["adapters"] if entry["role"] == "client"] == [2, 9]
        assert list(virtual_adapters(fdt.decode(system.device_tree("client1")))) == [0x30000002, 0x30000009]
        await system.plug.detach(disk)
        assert [entry["slot"] for entry in system.report()["adapters"] if entry["role"] == "client"] == [2]
        assert list(virtual_adapters(fdt.decode(system.device_tree("client1")))) == [0x30000002]
        assert not (file.parent / "b.sock").exists()
        open_image(file.parent / "b.img").close()
        assert (file.parent / "b.img").read_bytes()[4096 : 4096 + 8192] == b"x" * 8192
        with pytest.raises(OSError, match="the disk was detached") as caught:
            await disk.driver.read(0, 512)
        assert caught.value.errno == errno.ESHUTDOWN

    run(file, scenario)


def test_attached_disk_stays_until_the_system_stops(file: Path) -> None:
    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file))
        await disk.driver.write(0, b"y" * 4096)

    run(file, scenario)
    assert (file.parent / "b.img").read_bytes()[:4096] == b"y" * 4096


def test_disk_of_the_file_can_be_detached_and_attached_again(file: Path) -> None:
    async def scenario(system: System) -> None:
        await system.plug.detach(system.disks[0])
        assert system.disks == []
        disk = await system.plug.attach("client1", options(file, "a", queues=2, revision=1))
        assert disk.name == "client1/2"
        assert await disk.driver.read(0, 512) == bytes(512)

    run(file, scenario)


@pytest.mark.parametrize("force", [False, True], ids=["orderly", "force"])
def test_200_cycles_leave_no_page_file_or_thread_behind(file: Path, force: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(hotplug, "GRACE", 0.01)

    async def scenario(system: System) -> None:
        first = system.disks[0]
        await first.driver.write(0, b"z" * 4096)
        before = held(), free_pages(system)
        for number in range(200):
            disk = await system.plug.attach("client1", options(file, vios=("vios1", "vios2")[number % 2]))
            if number % 3:
                await disk.driver.write(0, b"w" * 4096)
            if number % 20 == 0:
                program_client = await asyncio.to_thread(PlainNbd, file.parent / "b.sock")
                assert await asyncio.to_thread(program_client.write, 0, b"v" * 4096)
                program_client.close()
            await system.plug.detach(disk, force=force)
        del disk, program_client
        assert (held(), free_pages(system)) == before
        assert (first.client.sessions, first.client.rejected, first.driver.failed) == (1, 0, 0)

    run(file, scenario)


def test_other_disk_costs_the_same_while_disks_come_and_go(file: Path) -> None:
    async def work(disk: ServedDisk) -> tuple[int, int, int]:
        ends = (disk.client_adapter.ledger, disk.server_adapter.ledger)
        before = [end.snapshot() for end in ends]
        for _ in range(50):
            await disk.driver.write(0, b"x" * 4096)
        spent = [end.snapshot() - start for end, start in zip(ends, before, strict=True)]
        both = spent[0] + spent[1]
        return both["rdma_operations"], both["hcalls"]["H_SEND_CRQ"], both["tce_updates"]

    async def scenario(system: System) -> None:
        first = system.disks[0]
        await first.driver.write(0, b"x" * 4096)
        alone = await work(first)
        ended = False

        async def churn() -> None:
            while not ended:
                disk = await system.plug.attach("client1", {**options(file), "nbd": None})
                await system.plug.detach(disk, force=bool(system.disks.index(disk) % 2))

        churning = asyncio.ensure_future(churn())
        await asyncio.sleep(0.05)
        assert await work(first) == alone
        ended = True
        await churning
        assert first.client.sessions == 1

    run(file, scenario)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "client": ("nobody", {}, 'there is no client partition "nobody"; expected one of: client1'),
    "vios": ("client1", {"vios": "x"}, 'disk.vios: "x" is not one of the VIO servers (vios1, vios2)'),
    "which vios": ("client1", {"vios": None}, "disk.vios: several could serve it, say which: vios1, vios2"),
    "image": ("client1", {"image": "/no/img"}, 'disk.image: /no/img does not exist (size = "1G" would make it)'),
    "no image": ("client1", {"image": None}, "disk.image: it is missing; expected a string"),
    "misspelt": ("client1", {"redonly": True}, 'disk.redonly: there is no such option; did you mean "readonly"?'),
    "range": ("client1", {"queues": 99}, "disk.queues: expected an integer from 1 to 64, found 99"),
    "slot": ("client1", {"slot": 2}, "disk: slot 2 of partition client1 holds virtio already"),
    "memory": ("client1", {"queues": 64, "queue_size": 1024}, "client1.memory: 8M; its devices need at least "),
}


@pytest.mark.parametrize("case", WRONG)
def test_attach_that_cannot_be_is_told_and_leaves_nothing(case: str, threads: Path) -> None:
    client, changed, told = WRONG[case]
    asked = {key: value for key, value in {**options(threads), **changed}.items() if value is not None}

    async def scenario(system: System) -> None:
        before = held(), free_pages(system)
        with pytest.raises(LocalError) as caught:
            await system.plug.attach(client, asked)
        assert str(caught.value).startswith(told)
        assert (held(), free_pages(system)) == before
        assert len(system.disks) == len(system.config.lpar[0].disk) == 1
        await system.plug.attach("client1", options(threads))

    run(threads, scenario)


def test_attach_of_an_image_or_socket_in_use_is_told(file: Path) -> None:
    async def scenario(system: System) -> None:
        with pytest.raises(LocalError, match=r"disk\.image: .*a\.img is served by client1/2 already"):
            await system.plug.attach("client1", options(file, image=str(file.parent / "a.img")))
        with pytest.raises(LocalError, match=r"disk\.nbd: .*a\.sock is the socket of client1/2\.nbd already"):
            await system.plug.attach("client1", options(file, nbd=str(file.parent / "a.sock")))
        with (
            open_image(file.parent / "b.img"),
            pytest.raises(LocalError, match=r"disk: image .*b\.img is in use by this process"),
        ):
            await system.plug.attach("client1", options(file))

    run(file, scenario)


def test_attach_whose_socket_cannot_be_made_leaves_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_export(self: System, disk: ServedDisk) -> None:
        raise LocalError("disk.nbd: no")

    async def scenario(system: System) -> None:
        before = free_pages(system)
        with monkeypatch.context() as patch:
            patch.setattr(System, "export", no_export)
            with pytest.raises(LocalError, match=r"disk\.nbd: no"):
                await system.plug.attach("client1", options(file))
        assert free_pages(system) == before
        await system.plug.attach("client1", options(file))

    run(file, scenario)


def test_pools_share_the_memory_anew(file: Path) -> None:
    async def scenario(system: System) -> None:
        first = system.disks[0].driver
        taken: list[Buffer] = [await first.acquire_buffer(512) for _ in range(first.pool.limit)]
        for buffer in taken:
            first.release_buffer(buffer)
        del taken
        alone = first.pool.limit
        second = await system.plug.attach("client1", options(file))
        assert first.pool.count == first.pool.limit <= alone // 2
        await second.driver.write(0, bytes(MIB))
        await system.plug.detach(second)
        assert first.pool.limit == alone

    run(file, scenario)


def test_detach_with_32_in_flight_ends_each_request_once(file: Path) -> None:
    async def scenario(system: System) -> None:
        for force in (False, True):
            disk = await system.plug.attach("client1", options(file))
            outcomes: list[int] = []

            async def keep_writing(disk: ServedDisk, position: int, outcomes: list[int]) -> None:
                while True:
                    try:
                        await disk.driver.write(position, b"q" * 4096)
                    except OSError as error:
                        outcomes.append(error.errno or 0)
                        return

            writers = [asyncio.ensure_future(keep_writing(disk, at * 4096, outcomes)) for at in range(32)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(10):
                await system.plug.detach(disk, force=force)
                await asyncio.gather(*writers)
            assert outcomes == [errno.ESHUTDOWN] * 32
            assert disk.driver.in_flight == disk.driver.pending == 0

    run(file, scenario)


class Stuck:
    """Makes the images of a server stop in the middle of a write, until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.reached = threading.Event()
        write_from = Image.write_from

        def write(image: Image, position: int, buffer: memoryview) -> None:
            if image.path.endswith("b.img"):
                self.reached.set()
                assert self.go.wait(30)
            write_from(image, position, buffer)

        monkeypatch.setattr(Image, "target", None)  # all data by the methods
        monkeypatch.setattr(Image, "write_from", write)


def test_detach_from_a_server_that_hangs_is_bounded_and_can_be_finished(
    threads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_module, "FLUSH_LIMIT", 0.2)
    stuck = Stuck(monkeypatch)

    async def scenario(system: System) -> None:
        before = free_pages(system)
        disk = await system.plug.attach("client1", options(threads))
        writer = asyncio.ensure_future(disk.driver.write(0, b"h" * 4096))
        await asyncio.to_thread(stuck.reached.wait)
        with monkeypatch.context() as patch:
            patch.setattr(system_module, "STOP_LIMIT", 0.2)
            with pytest.raises(LocalError, match=r"client1/3 is detached from its client, but vios1 still works on"):
                await system.plug.detach(disk)
        with pytest.raises(OSError, match="the disk was detached"):
            await writer
        assert disk in system.disks
        stuck.go.set()
        await system.plug.detach(disk)
        assert disk not in system.disks
        assert free_pages(system) == before
        await system.plug.attach("client1", options(threads))

    run(threads, scenario)


def test_force_overtakes_a_detach_that_waits(threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck(monkeypatch)

    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", {**options(threads), "nbd": None})
        writer = asyncio.ensure_future(disk.driver.write(0, b"h" * 4096))
        await asyncio.to_thread(stuck.reached.wait)
        orderly = asyncio.ensure_future(system.plug.detach(disk))
        await asyncio.sleep(0.1)
        assert not orderly.done()  # it waits for the flush, which waits behind the write
        started = time.monotonic()
        forced = asyncio.ensure_future(system.plug.detach(disk, force=True))
        with pytest.raises(OSError, match="unplugged") as caught:
            await writer
        assert caught.value.errno == errno.ESHUTDOWN
        assert time.monotonic() - started < 5
        stuck.go.set()
        await asyncio.gather(orderly, forced)
        assert disk not in system.disks

    run(threads, scenario)


def test_crq_that_cannot_be_freed_is_unplugged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(system: System) -> None:
        before = free_pages(system)
        disk = await system.plug.attach("client1", options(file))
        await disk.driver.write(0, b"x" * 4096)
        with monkeypatch.context() as patch:
            busy = (disk.client_adapter.unit_address, disk.server_adapter.unit_address)
            free_crq = PartitionPort.free_crq

            def long_busy(port: PartitionPort, unit_address: int) -> int:
                code = free_crq(port, unit_address) if unit_address not in port.nodes else 9900
                return code if unit_address in busy else free_crq(port, unit_address)

            patch.setattr(PartitionPort, "free_crq", long_busy)
            await system.plug.detach(disk)
        assert free_pages(system) == before
        assert disk not in system.disks

    run(file, scenario)


def test_failed_flush_is_told_and_the_disk_is_gone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flush(self: Image) -> None:
        raise OSError(errno.EIO, "Input/output error", self.path)

    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file))
        with monkeypatch.context() as patch:
            patch.setattr(Image, "flush", no_flush)
            with pytest.raises(LocalError, match=r"client1/3 is detached, but flushing .*b\.img: "):
                await system.plug.detach(disk)
        assert disk not in system.disks

    run(file, scenario)


def test_system_that_stops_meanwhile_leaves_nothing(file: Path) -> None:
    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file))
        leaving = asyncio.ensure_future(system.plug.detach(disk))
        coming = asyncio.ensure_future(system.plug.attach("client1", options(file, "c", size="1M")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await system.stop()
        await leaving
        with pytest.raises(LocalError, match="the system stopped while the disk was being attached"):
            await coming
        with pytest.raises(LocalError, match="the system is starting or stopping"):
            await system.plug.attach("client1", options(file))

    run(file, scenario)


def test_adapters_removed_under_the_system_fail_io_and_can_be_cleaned_up(file: Path) -> None:
    """As a VIO server does that loses the image for good: nobody asked the client."""

    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file))
        client = await asyncio.to_thread(PlainNbd, file.parent / "b.sock")
        assert await asyncio.to_thread(client.write, 0, b"1" * 4096)
        system.plug._unplug(disk)
        assert not await asyncio.to_thread(client.write, 0, b"2" * 4096)
        client.close()
        entry = next(entry for entry in system.report()["adapters"] if entry["image"].endswith("b.img"))
        assert (entry["state"], entry["failure"]) == ("gone", "the adapter was unplugged")
        await system.plug.detach(disk)

    run(file, scenario)


# -- another size


def test_resize_is_seen_by_those_who_connect_later(file: Path) -> None:
    async def scenario(system: System) -> None:
        disk = system.disks[0]
        old = await asyncio.to_thread(PlainNbd, file.parent / "a.sock")
        await system.plug.resize(disk, 4 * MIB)
        assert disk.driver.capacity == 4 * MIB
        assert os.path.getsize(file.parent / "a.img") == 4 * MIB
        new = await asyncio.to_thread(PlainNbd, file.parent / "a.sock")
        assert (old.size, new.size) == (MIB, 4 * MIB)
        assert await asyncio.to_thread(new.write, 3 * MIB, b"n" * 4096)
        with pytest.raises(LocalError, match=r"client1/2 has 4M; 2M would cut off its end \(--shrink allows that\)"):
            await system.plug.resize(disk, 2 * MIB)
        await system.plug.resize(disk, 2 * MIB, shrink=True)
        assert not await asyncio.to_thread(new.write, 3 * MIB, b"n" * 4096)
        assert await asyncio.to_thread(old.write, 0, b"o" * 4096)
        for client in (old, new):
            client.close()

    run(file, scenario)


def test_resize_that_cannot_be_is_told(file: Path) -> None:
    async def scenario(system: System) -> None:
        disk = await system.plug.attach("client1", options(file, readonly=True))
        with pytest.raises(LocalError, match="client1/3 is readonly and cannot be resized"):
            await system.plug.resize(disk, 2 * MIB)
        with pytest.raises(LocalError, match="size: 1000 bytes; expected a multiple of 512"):
            await system.plug.resize(system.disks[0], 1000)

    run(file, scenario)


# -- as a user does it


def fio(uri: str, seconds: int, *, log: Path) -> subprocess.Popen[str]:
    words = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--size=8m", "--rw=randwrite", "--bs=4k"]
    words += ["--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output-format=json"]
    words += ["--time_based", f"--runtime={seconds}"]
    with log.open("w") as output:
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("how", [(), ("--force",)], ids=["orderly", "force"])
def test_fio_on_a_detached_disk_gets_an_error_and_the_other_goes_on(how: tuple[str, ...], house: House) -> None:
    house.image("disk.img", 8 * MIB)
    house.image("b.img", 8 * MIB)
    system = house.up(house.declare())
    said = house.ok("attach", "client1", "--image", "b.img", "--nbd", "b.sock", "--queues", "2", "--discard")
    assert said.splitlines()[0] == f"client1/3: {house.folder}/b.img, served by vios1/3"
    assert said.splitlines()[1] == f"    nbd+unix:///?socket={house.folder}/b.sock"
    stays = fio(house.uri(), 6, log=house.folder / "stays.json")
    goes = fio(house.uri("b"), 60, log=house.folder / "goes.json")
    requests: list[int] = [0, 0]

    def both_work() -> bool:
        clients = [entry for entry in house.ps()["adapters"] if entry["role"] == "client"]
        requests[:] = [entry["requests"] for entry in clients]
        return min(requests) > 500

    wait_for(both_work)
    started = time.monotonic()
    said = house.ok("detach", "b.sock" if how else "client1/3", *how)
    assert said == f"client1/3: {house.folder}/b.img is detached\n"
    assert time.monotonic() - started < 20
    assert goes.wait(20) != 0
    output = (house.folder / "goes.json").read_text()
    assert re.search(r"Cannot send after transport endpoint shutdown|Input/output error|error", output)
    assert stays.wait(60) == 0
    report = (house.folder / "stays.json").read_text()
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["total_ios"] > 0
    first = house.client()
    assert (first["sessions"], first["failed"], first["rejected"]) == (1, 0, 0)
    copy = house.folder / "copy.img"
    program("nbdcopy", house.uri(), str(copy))
    house.end(system)
    assert digest(house.folder / "disk.img") == digest(copy)


def test_nbd_clients_of_an_idle_disk_get_a_clean_end(house: House) -> None:
    house.image("disk.img", MIB)
    house.up(house.declare())
    client = PlainNbd(house.folder / "one.sock")
    assert client.write(0, b"c" * 4096)
    house.ok("detach", "client1/2")
    assert client.file.read() == b""
    client.close()
    assert house.ps()["adapters"] == []
    assert house.leftovers() == ["powervio/one.lock", "powervio/one.sock"]
    assert (house.folder / "disk.img").read_bytes()[:4096] == b"c" * 4096
    house.ok("attach", "client1", "--image", "disk.img", "--nbd", "one.sock")
    program("nbdinfo", house.uri())


def test_resize_by_the_command_line(house: House) -> None:
    house.image("disk.img", MIB)
    house.up(house.declare())
    assert house.ok("resize", "client1/2", "3M") == "client1/2 has 3M\n"
    assert program("nbdinfo", "--size", house.uri()) == f"{3 * MIB}\n"
    assert house.refused("resize", "one.sock", "1M").startswith("client1/2 has 3M; 1M would cut off its end")
    assert house.ok("resize", "one.sock", "--shrink", "1048576") == "client1/2 has 1M\n"
    assert house.refused("resize", "one.sock", "x").startswith("size: expected a size such as")


def test_mistakes_of_the_command_line_are_one_line(house: House) -> None:
    house.image("disk.img", MIB)
    house.up(house.declare())
    no_disk = 'there is no disk "client1/7"; expected the path of its socket, or one of: client1/2'
    assert house.refused("detach", "client1/7") == no_disk
    assert house.refused("resize", "client1/7", "1G") == no_disk
    assert house.refused("attach", "x", "--image", "y") == 'there is no client partition "x"; expected one of: client1'
    assert house.refused("attach", "client1", "--image", "y", "--block-size", "7") == (
        "disk.block_size: expected an integer from 512 to 65536, found 7"
    )
    assert house.refused("attach", "client1", "--image", "y", "--system", "z").startswith('no system named "z" is')
    assert house.run("attach", "client1").returncode == 2
    house.ok("down")
    assert house.refused("detach", "client1/2") == "no system is running; `powervio up SYSTEM.toml` starts one"


@pytest.mark.parametrize("partition", ["client1", "vios1"])
def test_dtb_of_a_running_system_is_that_of_its_file_and_dtc_reads_it(partition: str, house: House) -> None:
    house.image("disk.img", MIB)
    file = house.declare()
    declared = house.folder / "declared.dtb"
    house.ok("dtb", partition, "--file", file, "-o", str(declared))
    house.up(file)
    running = house.folder / "running.dtb"
    house.ok("dtb", partition, "-o", str(running))
    assert running.read_bytes() == declared.read_bytes()
    result = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", str(running)], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert f'ibm,partition-name = "{partition}";' in result.stdout
    assert list(virtual_adapters(fdt.decode(running.read_bytes()))) == [0x30000002]
    house.ok("attach", "client1", "--image", "b.img", "--size", "1M", "--slot", "12")
    house.ok("dtb", partition, "-o", str(running))
    assert len(virtual_adapters(fdt.decode(running.read_bytes()))) == 2


def test_dtb_mistakes_are_one_line(house: House) -> None:
    house.image("disk.img", MIB)
    file = house.declare()
    expected = 'there is no partition "x"; expected one of: client1, vios1'
    assert house.refused("dtb", "x", "--file", file) == expected
    house.up(file)
    assert house.refused("dtb", "x") == expected
    assert house.refused("dtb", "client1", "-o", "/no/folder/x") == "/no/folder/x: No such file or directory"
    assert house.run("dtb", "x", "--file", file, "--system", "one").returncode == 2
