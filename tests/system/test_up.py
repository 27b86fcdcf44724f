"""`powervio up`, `ps` and `down`, with real programs on the client's socket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from .harness import SOURCES, House, PlainNbd, digest, program, wait_for

MIB = 1 << 20

VARIANTS = {
    "revision-1": "",
    "revision-1-never-indirect": 'indirect = "never"',
    "revision-1-always-indirect": 'indirect = "always"',
    "revision-1-event-idx": "event_idx = true",
    "revision-1-four-queues": "queues = 4",
    "revision-0": "revision = 0",
    "revision-0-big-endian": 'revision = 0\nbyteorder = "big"',
    "revision-0-always-indirect": 'revision = 0\nindirect = "always"',
    "revision-0-big-endian-never-indirect": 'revision = 0\nbyteorder = "big"\nindirect = "never"',
    "revision-0-big-endian-always-indirect": 'revision = 0\nbyteorder = "big"\nindirect = "always"',
    "direct": "direct = true",
    "write-through": "write_cache = false",
    "blocks-of-4096": "block_size = 4096",
}


def copy_in_and_out(house: House, size: int) -> None:
    source = house.image("source.img", size, random=True)
    copy = house.folder / "copy.img"
    before = house.client()["rdma_bytes"]
    program("nbdcopy", str(source), house.uri())
    between = house.client()["rdma_bytes"]
    assert between - before >= size
    program("nbdcopy", house.uri(), str(copy))
    assert house.client()["rdma_bytes"] - between >= size
    assert digest(copy) == digest(source)


def fio_verify(house: House, size: str, name: str = "one") -> None:
    words = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={house.uri(name)}", f"--size={size}", "--rw=randwrite"]
    words += ["--bsrange=4k-64k", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=0"]
    words += ["--verify_state_save=0"]  # it would be saved in the folder that pytest runs in
    report = program(*words, "--output-format=json")
    (job,) = json.loads(report[report.index("{") :])["jobs"]  # a line about the URI stands before it
    assert job["error"] == 0
    assert job["read"]["total_ios"] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_disk_keeps_what_is_written(variant: str, house: House) -> None:
    image = house.image("disk.img", 32 * MIB)
    vios = "thread = false" if variant == "revision-1-never-indirect" else ""
    system = house.up(house.declare(more=VARIANTS[variant], vios=vios))
    client = house.client()
    assert client["state"] == "running"
    assert client["revision"] == (0 if "revision-0" in variant else 1)
    copy_in_and_out(house, 32 * MIB)
    fio_verify(house, "16m")
    last = house.folder / "last.img"
    program("nbdcopy", house.uri(), str(last))
    client = house.client()
    assert (client["failed"], client["rejected"], client["sessions"]) == (0, 0, 1)
    house.end(system)
    assert digest(image) == digest(last)


def test_64_mib_in_and_out(house: House) -> None:
    house.image("disk.img", 64 * MIB)
    house.up(house.declare())
    copy_in_and_out(house, 64 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("revision", [0, 1])
def test_1_gib_in_and_out(revision: int, house: House) -> None:
    house.image("disk.img", 1024 * MIB)
    house.up(house.declare(more=f"revision = {revision}"))
    copy_in_and_out(house, 1024 * MIB)
    fio_verify(house, "256m")


@pytest.mark.dual
def test_nbdinfo_sees_the_disk(house: House) -> None:
    house.image("disk.img", 8 * MIB)
    house.up(house.declare(more='serial = "S1"'))
    (export,) = json.loads(program("nbdinfo", "--json", house.uri()))["exports"]
    assert export["export-size"] == 8 * MIB
    assert export["export-name"] == "client1"
    assert not export["is_read_only"]
    assert all(export[ability] for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"))


@pytest.mark.dual
def test_qemu_io_writes_zeroes_and_discards(house: House) -> None:
    image = house.image("disk.img", 8 * MIB, random=True)
    system = house.up(house.declare())
    commands = ["write -P 0xa5 64k 128k", "write -P 0x5a -f 512 1024", "write -z 2M 1M", "discard 4M 1M", "flush"]
    commands += ["read -P 0xa5 64k 128k", "read -P 0x5a 512 1024", "read -P 0 2M 1M"]
    said = program("qemu-io", "-f", "raw", house.uri(), *(word for command in commands for word in ("-c", command)))
    assert "Pattern verification failed" not in said
    counters = next(entry for entry in house.ps()["adapters"] if entry["role"] == "server")["counters"]
    assert counters["write_zeroes"] >= 1
    assert counters["discards"] >= 1
    assert counters["flushes"] >= 1
    house.end(system)
    data = image.read_bytes()
    assert data[64 << 10 : 192 << 10] == b"\xa5" * (128 << 10)
    assert data[2 * MIB : 3 * MIB] == bytes(MIB)


def test_qemu_img_converts_and_compares(house: House) -> None:
    house.image("disk.img", 16 * MIB)
    source = house.image("source.img", 16 * MIB, random=True)
    qcow2 = str(house.folder / "source.qcow2")
    house.up(house.declare())
    program("qemu-img", "convert", "-O", "qcow2", str(source), qcow2)
    program("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, house.uri())
    assert "identical" in program("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, house.uri())
    back = str(house.folder / "back.qcow2")
    program("qemu-img", "convert", "-f", "raw", "-O", "qcow2", house.uri(), back)
    program("qemu-img", "check", back)
    assert "identical" in program("qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, str(source))


def test_several_clients_of_one_disk_at_once(house: House) -> None:
    image = house.image("disk.img", 32 * MIB)
    source = house.image("source.img", 32 * MIB, random=True)
    system = house.up(house.declare())
    program("nbdcopy", "--connections=4", "--requests=64", str(source), house.uri())
    house.end(system)
    assert digest(image) == digest(source)


def test_readonly_disk_refuses_writes(house: House) -> None:
    image = house.image("disk.img", 4 * MIB, random=True)
    before = digest(image)
    image.chmod(0o444)
    system = house.up(house.declare(more="readonly = true"))
    result = subprocess.run(
        ["qemu-io", "-f", "raw", house.uri(), "-c", "write 0 4k"], capture_output=True, text=True, check=False
    )
    assert "read-only" in (result.stdout + result.stderr).lower() or "Permission" in result.stdout + result.stderr
    client = PlainNbd(house.folder / "one.sock")
    assert not client.write(0, bytes(4096))
    client.close()
    program("qemu-io", "-r", "-f", "raw", house.uri(), "-c", "read 0 1M")
    house.end(system)
    assert digest(image) == before


def test_image_is_made_when_size_is_given(house: House) -> None:
    file = house.declare(image="new.img", more='size = "8M"')
    for _ in range(2):  # the second time it is there
        house.end(house.up(file))
        assert (house.folder / "new.img").stat().st_size == 8 * MIB


# -- the life of a system


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(how: signal.Signals, house: House) -> None:
    house.image("disk.img", MIB)
    system = house.up(house.declare())
    assert house.leftovers() == ["one.sock", "powervio/one.lock", "powervio/one.sock"]
    errors = house.end(system, how)
    assert "Traceback" not in errors
    assert house.leftovers() == []


def test_down_waits_until_the_image_is_free(house: House) -> None:
    house.image("disk.img", MIB)
    system = house.up(house.declare())
    assert house.ok("down", "one") == "one is down\n"
    program("qemu-img", "info", str(house.folder / "disk.img"))  # refuses an image in use
    assert house.leftovers() == []
    system.communicate(timeout=10)
    assert system.returncode == 0


def test_down_in_the_middle_of_work_is_clean(house: House) -> None:
    image = house.image("disk.img", 256 * MIB)
    source = house.image("source.img", 256 * MIB, random=True)
    file = house.declare()
    system = house.up(file)
    words = ["fio", "--name=x", "--ioengine=nbd", f"--uri={house.uri()}", "--rw=randrw", "--bs=64k", "--iodepth=16"]
    words += ["--size=128m", "--time_based", "--runtime=60"]
    worker = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: house.client()["requests"] > 50)
    copy = subprocess.Popen(["nbdcopy", str(source), house.uri()], stderr=subprocess.DEVNULL)
    assert house.ok("down") == "one is down\n"
    worker.wait(30)
    # a copy that was told that all is well has all of it in the image, whatever fio wrote into the first half
    if copy.wait(30) == 0:
        assert image.read_bytes()[128 * MIB :] == source.read_bytes()[128 * MIB :]
    _, errors = system.communicate(timeout=10)
    assert system.returncode == 0
    assert errors == "stopping; a second Ctrl-C ends at once\n"
    assert house.leftovers() == []
    house.end(house.up(file))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_is_in_the_image(how: signal.Signals, house: House) -> None:
    image = house.image("disk.img", 16 * MIB)
    system = house.up(house.declare())
    client = PlainNbd(house.folder / "one.sock")
    acknowledged = 0

    def write() -> None:
        nonlocal acknowledged
        for number in range(16 * MIB // 4096):
            if not client.write(number * 4096, number.to_bytes(4, "big") * 1024):
                return
            acknowledged = number + 1

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: acknowledged > 300)
    system.send_signal(how)
    writer.join()
    client.close()
    system.communicate(timeout=30)
    assert system.returncode == (0 if how == signal.SIGTERM else -how)
    data = image.read_bytes()
    for number in range(acknowledged):
        assert data[number * 4096 : number * 4096 + 4] == number.to_bytes(4, "big")


def test_it_starts_again_after_kill_9(house: House) -> None:
    image = house.image("disk.img", 8 * MIB)
    source = house.image("source.img", 8 * MIB, random=True)
    file = house.declare()
    system = house.up(file)
    program("nbdcopy", "--flush", str(source), house.uri())
    system.kill()
    system.communicate()
    assert house.leftovers() == ["one.sock", "powervio/one.lock", "powervio/one.sock"]
    assert house.refused("ps") == "no system is running; `powervio up SYSTEM.toml` starts one"
    system = house.up(file)
    copy = house.folder / "copy.img"
    program("nbdcopy", house.uri(), str(copy))
    assert digest(copy) == digest(source)
    house.end(system)
    assert digest(image) == digest(source)
    assert house.leftovers() == []


def test_two_systems_run_beside_each_other(house: House) -> None:
    for name in ("one", "two"):
        house.image(f"{name}.img", 4 * MIB)
        house.up(house.declare(name, f"{name}.img"))
    assert house.refused("ps") == "several systems are running, say which: one, two"
    assert house.refused("down") == "several systems are running, say which: one, two"
    assert house.refused("ps", "three") == 'no system named "three" is running (running: one, two)'
    for name in ("one", "two"):
        fio_verify(house, "4m", name)
        assert house.ps(name)["system"]["name"] == name
    assert house.ok("down", "one") == "one is down\n"
    assert house.ok("down") == "two is down\n"
    assert house.refused("down") == "no system is running; `powervio up SYSTEM.toml` starts one"


def test_same_name_twice_is_refused(house: House) -> None:
    house.image("disk.img", MIB)
    file = house.declare()
    system = house.up(file)
    for words in (("up", file), ("up", "-d", file)):
        said = house.refused(*words)
        assert said.startswith(f'a system named "one" is running (process {system.pid}): ')
    house.end(system)


def test_image_in_use_is_refused_with_its_path_and_nothing_stays(house: House) -> None:
    house.image("disk.img", MIB)
    house.image("mine.img", MIB)
    first = house.up(house.declare())
    second = house.declare("two", "mine.img", '[[lpar.disk]]\nvios = "vios1"\nimage = "disk.img"\nnbd = "x.sock"')
    for words in (("up", second), ("up", "-d", second)):
        said = house.refused(*words)
        assert re.match(rf"two\.toml: lpar\[0\]\.disk\[1\]: image .*/disk\.img is in use by process {first.pid}", said)
        assert house.leftovers() == ["one.sock", "powervio/one.lock", "powervio/one.sock"]
    house.end(first)
    house.end(house.up(second))


def test_socket_in_use_is_refused_with_its_path(house: House) -> None:
    house.image("disk.img", MIB)
    house.image("two.img", MIB)
    house.up(house.declare())
    file = house.declare("two", "two.img")
    path = house.folder / file
    path.write_text(path.read_text().replace("two.sock", "one.sock"))
    said = house.refused("up", file)
    assert said.startswith("two.toml: lpar[0].disk[0].nbd: cannot listen at ")
    assert house.leftovers() == ["one.sock", "powervio/one.lock", "powervio/one.sock"]


def test_background_returns_when_it_serves(house: House) -> None:
    house.image("disk.img", 4 * MIB)
    said = house.ok("up", "-d", house.declare())
    program("nbdinfo", house.uri())
    (log,) = re.findall(r"log: (\S+)", said)
    assert Path(log).exists()
    (pid,) = re.findall(r"process (\d+)", said)
    assert os.getpgid(int(pid)) == int(pid)
    assert house.ps()["system"]["pid"] == int(pid)
    fio_verify(house, "4m")
    assert house.ok("down") == "one is down\n"
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    assert Path(log).read_text() == ""


def test_background_prints_why_it_does_not_start(house: House) -> None:
    assert house.refused("up", "-d", "no.toml") == "no.toml: cannot be read (No such file or directory)"
    house.image("disk.img", MIB + 512)
    said = house.refused("up", "-d", house.declare(more="block_size = 4096"))
    assert said.startswith("one.toml: lpar[0].disk[0]: ")
    assert house.leftovers() == []


def test_second_signal_ends_at_once(house: House) -> None:
    house.image("disk.img", MIB)
    script = (
        "import asyncio\n"
        "from powervio.system.system import System\n"
        "System.stop = lambda self: asyncio.sleep(1000)\n"
        "from powervio.cli.main import main\n"
        f"main(['up', {house.declare()!r}])\n"
    )
    system = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=house.folder,
        env=house.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((house.folder / "one.sock").exists)
    wait_for(lambda: house.run("ps", "one").returncode == 0)
    time.sleep(0.2)
    system.send_signal(signal.SIGINT)
    assert system.stderr is not None
    assert system.stderr.readline() == "stopping; a second Ctrl-C ends at once\n"
    system.send_signal(signal.SIGINT)
    system.communicate(timeout=10)
    assert system.returncode == 130


# -- what is shown


def test_ps_json_has_both_ends_of_every_adapter(house: House) -> None:
    house.image("disk.img", 4 * MIB)
    house.up(house.declare(more="slot = 9"))
    program("qemu-io", "-f", "raw", house.uri(), "-c", "write 0 1M", "-c", "read 0 1M")
    report = house.ps()
    assert report["system"]["name"] == "one"
    assert [vios["name"] for vios in report["vios"]] == ["vios1"]
    client, server = report["adapters"]
    assert (client["partition"], client["role"], client["type"], client["slot"]) == ("client1", "client", "block", 9)
    assert (server["partition"], server["role"], server["revision"]) == ("vios1", "server", 1)
    assert client["partner"] == {"partition": "vios1", "slot": server["slot"]}
    assert server["partner"] == {"partition": "client1", "slot": 9}
    assert client["unit_address"] == 0x3000_0009
    assert client["requests"] == server["requests"] > 1
    assert client["rdma_bytes"] >= 2 * MIB
    assert server["rdma_operations"] > 0
    assert client["redirected_bytes"] == 0
    assert client["hcalls"]["H_SEND_CRQ"] > 0
    assert client["nbd"] == str(house.folder / "one.sock")
    assert server["counters"]["bytes_written"] == MIB


def test_ps_is_readable_in_80_columns(house: House) -> None:
    house.image("disk.img", MIB)
    house.up(house.declare())
    said = house.run("ps", COLUMNS="80").stdout
    table = [line for line in said.splitlines() if "image" not in line and "nbd" not in line and "/disk" not in line]
    assert max(map(len, table)) <= 80
    assert re.search(r"client1\s+2\s+block\s+running\s+vios1/2", said)


def test_mistake_in_the_file_is_one_line_for_each(house: House) -> None:
    file = house.declare(image="no.img")
    assert house.refused("up", file).startswith("one.toml: lpar[0].disk[0].image: ")
    (house.folder / file).write_text("[[vios\n")
    said = "one.toml: line 1, column 7: expected ']]' at the end of an array declaration; not TOML"
    assert house.refused("up", file) == said


def test_wrong_usage_has_exit_status_2(house: House) -> None:
    for words in (("up",), ("ups",), ("ps", "--jsn"), ("down", "a", "b"), ("--what",)):
        result = house.run(*words)
        assert result.returncode == 2, words
        assert "Traceback" not in result.stderr


def test_debug_shows_where_an_error_comes_from(house: House) -> None:
    result = house.run("--debug", "up", "no.toml")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_help_imports_no_command(house: House) -> None:
    script = (
        "import sys\n"
        "from powervio.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('rich', 'msgspec', 'asyncio', 'tomllib')\n"
        "       or name.startswith(('powervio.system', 'powervio.phyp'))])\n"
    )
    said = program(sys.executable, "-c", script, env={**os.environ, "PYTHONPATH": SOURCES})
    assert said.splitlines()[-1] == "[]"
    for command in ("demo", "up", "ps", "attach", "detach", "resize", "dtb", "down", "bench", "doctor"):
        assert f"\n  {command} " in said
