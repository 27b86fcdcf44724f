"""Disks on QEMU's formats, on other NBD servers and in pools, in whole systems: what programs see of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from .harness import House, PlainNbd, program, wait_for

FORMATS = ["qcow2", "vmdk", "vhdx"]
MIB = 1 << 20


def make(house: House, image_format: str, size: str = "64M") -> Path:
    path = house.folder / f"disk.{image_format}"
    program("qemu-img", "create", "-q", "-f", image_format, str(path), size)
    return path


def daemons_of(pid: int) -> list[int]:
    """The qemu-storage-daemons that a process started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")
            if entry.name.isdigit() and int(status[2].split()[1]) == pid and "qemu-storage-d" in status[0]:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def fio(uri: str, *more: str) -> list[str]:
    return [
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=4k-64k"),
        *(
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--output-format=json",
            *more,
        ),
    ]


@pytest.mark.parametrize("image_format", FORMATS)
def test_image_of_qemu_is_written_through_the_client_and_sound_afterwards(house: House, image_format: str) -> None:
    path = make(house, image_format)
    process = house.up(house.declare(image=path.name, more=f'format = "{image_format}"'))
    assert house.client()["format"] == image_format
    program(*fio(house.uri(), "--size=48M", "--io_size=24M", "--fsync=64"))
    program("qemu-io", "-f", "raw", "-c", "discard 1M 1M", "-c", "write -z 3M 1M", house.uri())
    copy = house.folder / "copy.img"
    program("nbdcopy", house.uri(), str(copy))
    (daemon,) = daemons_of(process.pid)
    said = house.end(process)
    assert not Path(f"/proc/{daemon}").exists()
    assert "WARNING" not in said, said
    assert "ERROR" not in said, said
    program("qemu-img", "check", "-f", image_format, str(path))
    program("qemu-img", "compare", "-f", image_format, "-F", "raw", str(path), str(copy))
    assert not list(house.run_folder.iterdir())


@pytest.mark.parametrize("image_format", FORMATS)
def test_killed_daemon_is_replaced_within_two_seconds_under_load(house: House, image_format: str) -> None:
    path = make(house, image_format)
    process = house.up(house.declare(image=path.name, more=f'format = "{image_format}"'))
    words = fio(house.uri(), "--size=48M", "--io_size=80M", "--fsync=100", "--rate=8m")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        for _ in range(2):
            time.sleep(1.0)
            (daemon,) = daemons_of(process.pid)
            done = house.client()["requests"]
            killed = time.monotonic()
            os.kill(daemon, signal.SIGKILL)
            wait_for(lambda gone=daemon: [pid for pid in daemons_of(process.pid) if pid != gone])
            assert time.monotonic() - killed < 2.1
            wait_for(lambda before=done: house.client()["requests"] > before + 20)
        output, _ = load.communicate(timeout=90)
        assert load.returncode == 0, output
    server = next(adapter for adapter in house.ps()["adapters"] if adapter["role"] == "server")
    assert server["reconnections"] >= 2
    house.end(process)
    # What a killed process left behind is leaked clusters at most, never wrong ones.
    check = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, check=False)
    assert check.returncode in (0, 3), check


def test_acknowledged_flush_survives_the_daemons_death_and_so_does_what_came_after(house: House) -> None:
    path = make(house, "qcow2")
    process = house.up(house.declare(image=path.name, more='format = "qcow2"'))
    client = PlainNbd(house.folder / "one.sock")
    for round_number in range(1, 6):
        for block in range(64):  # acknowledged, in a new cluster each, not flushed
            assert client.write((round_number * 64 + block) * 65536, bytes([round_number, block]) * 2048)
        (daemon,) = daemons_of(process.pid)
        os.kill(daemon, signal.SIGKILL)
        wait_for(lambda gone=daemon: not Path(f"/proc/{gone}").exists())
        assert client.write(0, bytes(512))  # survives the reconnection
        program("qemu-io", "-f", "raw", "-c", "flush", house.uri())
        (daemon,) = daemons_of(process.pid)
        os.kill(daemon, signal.SIGKILL)  # now everything was flushed: nothing may need a journal
    client.close()
    process.kill()
    process.wait()
    wait_for(lambda: not daemons_of(process.pid))
    raw = house.folder / "raw.img"
    program("qemu-img", "convert", "-O", "raw", str(path), str(raw))
    data = raw.read_bytes()
    for round_number in range(1, 6):
        for block in range(64):
            at = (round_number * 64 + block) * 65536
            assert data[at : at + 4096] == bytes([round_number, block]) * 2048, (round_number, block)


def test_killed_powervio_leaves_no_daemon_and_the_image_free(house: House) -> None:
    path = make(house, "qcow2")
    file = house.declare(image=path.name, more='format = "qcow2"')
    process = house.up(file)
    (daemon,) = daemons_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{daemon}").exists())
    house.end(house.up(file))
    assert not [entry for entry in house.run_folder.iterdir() if entry.is_dir()]


def test_image_in_use_elsewhere_is_refused_and_ours_is_refused_to_others(house: House) -> None:
    path = make(house, "qcow2")
    file = house.declare(image=path.name, more='format = "qcow2"')
    process = house.up(file)
    (daemon,) = daemons_of(process.pid)
    os.kill(daemon, signal.SIGSTOP)  # also while there is no daemon at work the image is ours
    other = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, check=False)
    assert "lock" in other.stderr
    os.kill(daemon, signal.SIGKILL)
    house.declare("two", image=path.name, more='format = "qcow2"')
    assert "is in use by" in house.refused("up", "two.toml")
    house.end(process)


def test_raw_disk_that_is_a_qcow2_image_is_refused_with_a_hint_and_served_if_meant(house: House) -> None:
    path = make(house, "qcow2")
    said = house.refused("up", house.declare(image=path.name))
    assert "is a qcow2 image" in said
    assert 'format = "qcow2"' in said
    house.end(house.up(house.declare(image=path.name, more='format = "raw"')))
    house.image("plain.img", MIB)
    assert "is no image; it is declared as vhdx" in house.refused(
        "up", house.declare(image="plain.img", more='format = "vhdx"')
    )


def test_missing_program_is_named_with_its_package(house: House) -> None:
    path = make(house, "qcow2")
    result = house.run("up", house.declare(image=path.name, more='format = "qcow2"'), PATH="/nonexistent")
    assert result.returncode == 1
    assert "apt-get install qemu-system-common" in result.stderr


def test_disk_of_another_nbd_server_goes_on_when_that_server_is_restarted(house: House) -> None:
    house.image("remote.img", 32 * MIB)
    socket = house.folder / "remote.sock"

    def serve() -> subprocess.Popen[bytes]:
        socket.unlink(missing_ok=True)
        return subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "file", str(house.folder / "remote.img")])

    server = serve()
    wait_for(socket.exists)
    try:
        process = house.up(house.declare(image="nbd+unix:///?socket=remote.sock"))
        load = subprocess.Popen(
            fio(house.uri(), "--size=16M", "--io_size=32M", "--rate=8m"), stdout=subprocess.PIPE, text=True
        )
        time.sleep(1.5)
        server.kill()
        server.wait()
        time.sleep(0.5)
        server = serve()
        output, _ = load.communicate(timeout=60)
        assert load.returncode == 0, output
        house.end(process)
    finally:
        server.kill()
        server.wait()


# -- pools

POOL = '[[vios]]\nname = "vios1"\n[[pool]]\nname = "data"\npath = "pool"\n'
DISK = '[[lpar]]\nname = "client1"\nmemory = "64M"\n[[lpar.disk]]\nvios = "vios1"\nimage = "{}"\nnbd = "p.sock"\n'


def test_pools_need_a_system_or_its_file(house: House) -> None:
    assert "--file names the system file" in house.refused("pool", "list")


def declare_pool(house: House, image: str = "pool:data/root") -> str:
    (house.folder / "p.toml").write_text(POOL + DISK.format(image))
    return "p.toml"


def test_volumes_are_made_served_resized_and_deleted(house: House) -> None:
    declare_pool(house)
    assert 'pool "data" has no volume' in house.refused("up", "p.toml") or not (house.folder / "pool").exists()
    house.ok("pool", "create", "data/root", "16M", "-f", "p.toml")
    house.ok("pool", "create", "data/spare", "1G", "-f", "p.toml")
    process = house.up("p.toml")
    listed = json.loads(house.ok("pool", "list", "--json"))["pools"][0]["volumes"]
    assert [(one["name"], one["size"], one["served_to"]) for one in listed] == [
        ("root", 16 * MIB, "client1/2"),
        ("spare", 1 << 30, None),
    ]
    assert listed[1]["allocated"] == 0
    assert "spare" in house.ok("pool", "list", "data")
    assert "is served to client1/2: it cannot be deleted" in house.refused("pool", "delete", "data/root")
    assert "say --shrink" in house.refused("pool", "resize", "data/root", "8M")
    assert "told client1/2" in house.ok("pool", "resize", "data/root", "32M")
    assert house.client()["capacity"] == 32 * MIB
    assert program("nbdinfo", "--size", house.uri("p")).strip() == str(32 * MIB)
    program("qemu-io", "-f", "raw", "-c", "write -P 7 24M 1M", "-c", "read -P 7 24M 1M", house.uri("p"))
    house.ok("pool", "resize", "data/root", "20M", "--shrink")
    assert program("nbdinfo", "--size", house.uri("p")).strip() == str(20 * MIB)
    house.ok("pool", "delete", "data/spare")
    house.end(process)
    assert (house.folder / "pool" / "root").stat().st_size == 20 * MIB
    house.ok("pool", "delete", "data/root", "-f", "p.toml")
    assert not list((house.folder / "pool").iterdir())


# -- disks that come while the system runs


def test_every_kind_of_image_is_attached_resized_if_raw_and_detached(house: House) -> None:
    house.ok("pool", "create", "data/root", "16M", "-f", declare_pool(house))
    house.ok("pool", "create", "data/more", "16M", "-f", "p.toml")
    path = make(house, "qcow2")
    process = house.up("p.toml")
    limit = ("--bytes-per-second", "64M")
    said = house.ok("attach", "client1", "--image", "pool:data/more", "--nbd", "more.sock", *limit)
    assert said.splitlines()[0] == f"client1/3: {house.folder}/pool/more, served by vios1/3"
    assert "is served to client1/3" in house.refused("pool", "delete", "data/more")
    house.ok("attach", "client1", "--image", path.name, "--format", "qcow2", "--nbd", "q.sock")
    house.image("remote.img", MIB)
    serving = ["nbdkit", "-f", "-U", str(house.folder / "remote.sock"), "file", str(house.folder / "remote.img")]
    with subprocess.Popen(serving) as server:
        wait_for((house.folder / "remote.sock").exists)
        house.ok("attach", "client1", "--image", "nbd+unix:///?socket=remote.sock", "--nbd", "far.sock")
        for name in ("q", "far"):
            program("qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", house.uri(name))
        house.ok("detach", "client1/5")
        server.terminate()
    assert (house.folder / "remote.img").read_bytes() == b"\x07" * MIB
    shown = house.ok("ps")
    assert "limited to 64.0 MiB/s" in shown
    assert f"{path} (qcow2)" in shown
    assert "told client1/3" in house.ok("pool", "resize", "data/more", "32M")
    assert house.ok("resize", "client1/3", "48M") == "client1/3 has 48M\n"
    assert program("nbdinfo", "--size", house.uri("more")).strip() == str(48 * MIB)
    assert "is not a raw image" in house.refused("resize", "client1/4", "128M")
    (daemon,) = daemons_of(process.pid)
    for target in ("q.sock", "more.sock"):
        house.ok("detach", target)
    assert not Path(f"/proc/{daemon}").exists()
    house.ok("pool", "delete", "data/more")
    for wrong, words in (
        ("pool:data/none", "disk.image: pool data has no volume none"),
        ("pool:none/x", 'disk.image: there is no pool "none" (pools: data)'),
        ("nbd://host:x/", "disk.image: nbd://host:x/: the port is no number"),
        (path.name, 'serve what is in it with format = "qcow2"'),
    ):
        assert words in house.refused("attach", "client1", "--image", wrong)
    assert len(house.ps()["adapters"]) == 2
    house.end(process)
    assert not list(house.run_folder.iterdir())
    assert program("qemu-img", "check", "-f", "qcow2", str(path))


@pytest.mark.parametrize("name", ["data/../x", "data/.hidden", "data/a/b", "data/", "/x", "data", "data/-x"])
def test_name_that_is_none_is_refused(house: House, name: str) -> None:
    declare_pool(house, "x.img")
    result = house.run("pool", "create", "-f", "p.toml", "--", name, "1M")
    assert result.returncode == 1
    assert "expected" in result.stderr
    declare_pool(house, f"pool:{name}")
    assert "lpar[0].disk[0].image" in house.refused("up", "p.toml")


def test_the_example_is_true(house: House) -> None:
    example = Path(__file__).parents[2] / "examples" / "storage.toml"
    (house.folder / "storage.toml").write_text(example.read_text())
    program("qemu-img", "create", "-q", "-f", "qcow2", str(house.folder / "root.qcow2"), "8G")
    house.ok("pool", "create", "data/home", "20G", "-f", "storage.toml")
    house.ok("up", "-d", "storage.toml")
    house.ok("pool", "resize", "data/home", "30G")
    listed = house.ok("pool", "list")
    assert "home" in listed
    assert "client1/3" in listed
    assert program("nbdinfo", "--size", house.uri("client1-home")).strip() == str(30 << 30)
    assert program("nbdinfo", "--size", house.uri("client1-root")).strip() == str(8 << 30)
    house.ok("down")


# -- limits


def test_limits_hold_and_are_visible_and_another_disk_does_not_feel_them(house: House) -> None:
    house.image("disk.img", 64 * MIB)
    house.image("free.img", 64 * MIB)
    more = 'bytes_per_second = "8M"\nrequests_per_second = 100\n[[lpar.disk]]\nvios = "vios1"\nimage = "free.img"\n'
    process = house.up(house.declare(more=more + 'nbd = "free.sock"'))
    writes = [word for at in range(0, 16, 2) for word in ("-c", f"write {at}M 2M")]
    began = time.monotonic()
    limited = subprocess.Popen(["qemu-io", "-f", "raw", *writes, house.uri()], stdout=subprocess.DEVNULL)
    program("qemu-io", "-f", "raw", *writes, house.uri("free"))
    assert limited.poll() is None  # the other is done, and this one is not
    assert limited.wait(30) == 0
    assert 1.5 < time.monotonic() - began < 8  # 16 MiB at 8 MiB/s
    began = time.monotonic()
    words = ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=4M", "--io_size=640k")
    program("fio", "--name=limited", "--ioengine=nbd", f"--uri={house.uri()}", *words)
    assert 1.4 < time.monotonic() - began < 8  # 160 requests at 100/s, with a burst of 10
    server = next(adapter for adapter in house.ps()["adapters"] if adapter["role"] == "server")
    assert server["limits"]["requests_per_second"] == 100
    assert server["counters"]["throttled"] >= 150
    assert server["delayed"] == 0
    assert "limited to 8.0 MiB/s, 100 requests/s" in house.ok("ps")
    house.end(process)


# -- readers and writers


def test_several_read_one_image_and_a_writer_is_kept_out(house: House) -> None:
    house.image("disk.img", MIB)
    first = house.up(house.declare("one", more="readonly = true"))
    second = house.up(house.declare("two", more="readonly = true"))
    house.declare("three")
    assert "is in use by" in house.refused("up", "three.toml")
    house.end(first)
    house.end(second)
    house.end(house.up("three.toml"))


def test_image_is_served_only_after_its_killed_predecessor_has_ended(house: House) -> None:
    """The predecessor's lock lives in a helper that goes on writing after its parent was killed, as an engine would."""
    path = house.image("disk.img", MIB)
    writing = (
        "import os, sys, time\n"
        "from powervio.storage.image import open_image\n"
        "image = open_image(sys.argv[1])\n"
        "end = time.monotonic() + 2\n"
        "if os.fork() == 0:\n"
        "    while time.monotonic() < end: os.pwrite(image.fileno(), b'old' * 1000, 0)\n"
        "    os._exit(0)\n"
        "print(end, flush=True)\n"
        "time.sleep(60)\n"
    )
    predecessor = subprocess.Popen(
        ["python3", "-c", writing, str(path)], env=house.environment, stdout=subprocess.PIPE, text=True
    )
    assert predecessor.stdout is not None
    end = float(predecessor.stdout.readline())
    threading.Timer(0.1, predecessor.kill).start()
    process = house.up(house.declare())
    assert time.monotonic() > end
    program("qemu-io", "-f", "raw", "-c", "write -P 9 0 64k", house.uri())
    house.end(process)
    predecessor.wait()
    predecessor.stdout.close()
    assert path.read_bytes()[:65536] == b"\x09" * 65536
