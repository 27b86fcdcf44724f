"""The NBD server against programs of others: libnbd's nbdinfo and nbdcopy, fio, QEMU's qemu-io and qemu-img, nbdkit."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attach.memory_disk import MemoryDisk

from powervio.attach.nbd import NbdServer

MIB = 1 << 20


class Served:
    """A disk served in a thread of its own, so that programs can be run and waited for."""

    def __init__(self, disk: MemoryDisk, path: Path) -> None:
        self.disk = disk
        self.path = path
        self.uri = f"nbd+unix:///?socket={path}"
        self.blockdev = f"nbd:unix:{path}"  # QEMU's own way to name it
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with NbdServer(self.disk, self.path, name="disk", description="in memory"):
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.disk.free_buffers == self.disk.buffers


def run(*command: object, status: int = 0) -> str:
    """The output of a program that ends with this exit status."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=90, check=False
    )
    assert done.returncode == status, f"{words}: status {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Served]:
    """64 MiB whose holes are known; reads and writes are split at 64 KiB."""
    disk = MemoryDisk(64 * MIB, buffers=8, max_transfer=64 << 10)
    disk.knows_holes = True
    served = Served(disk, tmp_path / "disk.sock")
    yield served
    served.close()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Served]:
    """256 MiB that does not know its holes, as a client partition's disk."""
    served = Served(MemoryDisk(256 * MIB), tmp_path / "disk.sock")
    yield served
    served.close()


def test_nbdinfo_sees_what_is_offered(large: Served) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", large.uri))["exports"]
    assert export["export-size"] == 256 * MIB
    able = {word for word, value in export.items() if word.startswith("can_") and value}
    assert able == {
        f"can_{word}" for word in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    }
    assert not export["is_read_only"]
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [512, 4096, 32 * MIB]
    assert export["contexts"] == ["base:allocation"]


def test_nbdinfo_list_finds_the_export_by_name(large: Served) -> None:
    (export,) = json.loads(run("nbdinfo", "--list", "--json", large.uri))["exports"]
    assert (export["export-name"], export["description"]) == ("disk", "in memory")
    assert run("nbdinfo", "--size", f"nbd+unix:///disk?socket={large.path}").strip() == str(256 * MIB)
    assert "nope" in run("nbdinfo", f"nbd+unix:///nope?socket={large.path}", status=1)


def test_nbdinfo_map_says_data_when_holes_are_not_known(large: Served) -> None:
    (extent,) = json.loads(run("nbdinfo", "--map", "--json", large.uri))
    assert (extent["offset"], extent["length"], extent["type"]) == (0, 256 * MIB, 0)


def test_nbdinfo_map_shows_holes_that_are_known(small: Served) -> None:
    run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 64k", small.blockdev)
    extents = json.loads(run("nbdinfo", "--map", "--json", small.uri))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in extents] == [
        (0, MIB, 3),
        (MIB, 64 << 10, 0),
        (MIB + (64 << 10), 63 * MIB - (64 << 10), 3),
    ]


def test_nbdcopy_of_256_mib_in_and_out_is_the_same(large: Served, tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(os.urandom(256 * MIB))
    run("nbdcopy", "--flush", image, large.uri)
    run("nbdcopy", large.uri, copy)
    run("cmp", image, copy)
    assert "flush" in large.disk.calls


def test_nbdcopy_of_the_largest_requests_on_many_connections_is_the_same(large: Served, tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(os.urandom(256 * MIB))
    run("nbdcopy", "--connections=4", "--requests=32", "--request-size=4194304", image, large.uri)
    run("nbdcopy", "--connections=1", "--request-size=33554432", large.uri, copy)
    run("cmp", image, copy)


@pytest.mark.parametrize("jobs", [1, 3])
def test_fio_verifies_what_it_wrote(large: Served, jobs: int) -> None:
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={large.uri}", "--rw=randrw", "--bsrange=512-256k"),
        *("--iodepth=16", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"),
        *(f"--numjobs={jobs}", f"--offset_increment={64 * MIB}", "--fsync=32", "--randrepeat=0"),
    )


def test_qemu_io_reads_what_it_wrote_zeroed_and_discarded(small: Served) -> None:
    said = run(
        *("qemu-io", "-f", "raw"),
        *("-c", "write -P 0xab 0 1M", "-c", "write -P 0xcd 1M 3M", "-c", "read -P 0xab 0 1M"),
        *("-c", "read -P 0xcd 1M 3M", "-c", "write -z 512k 1M", "-c", "read -P 0 512k 1M", "-c", "flush"),
        *("-c", "write -z -u 2M 64k", "-c", "read -P 0 2M 64k", "-c", "discard 3M 512k", "-c", "read -P 0 3M 512k"),
        *("-c", "write -f -P 0x11 4M 4k", "-c", "read -P 0x11 4M 4k", "-c", "read -P 0xab 0 512k"),
        *("-c", "aio_write -P 0x22 8M 20M", "-c", "aio_read -P 0x11 4M 4k", "-c", "aio_flush"),
        *("-c", "read -P 0x22 8M 20M", small.blockdev),
    )
    assert "failed" not in said
    assert {"write fua", "flush", "discard", "write_zeroes", "write_zeroes unmap"} <= set(small.disk.calls)


def test_qemu_io_is_told_of_a_failing_disk(small: Served) -> None:
    small.disk.fail_from = 32 * MIB
    said = run("qemu-io", "-f", "raw", "-c", "read 33M 4k", "-c", "read 30M 4M", small.blockdev, status=1)
    assert said.count("Input/output error") == 2
    run("qemu-io", "-f", "raw", "-c", "read 1M 4k", small.blockdev)


def test_qemu_img_converts_in_and_out_and_compares_equal(small: Served, tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy.qcow2"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        for at in (0, 5, 17, 63):
            file.seek(at * MIB)
            file.write(os.urandom(MIB - 512))
    info = json.loads(run("qemu-img", "info", "--output=json", small.uri))
    assert info["virtual-size"] == 64 * MIB
    run("qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", image, small.blockdev)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, small.blockdev)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", small.blockdev, copy)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, copy)
    assert json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", small.blockdev))[0]["zero"] is False


def test_nbdkit_passes_a_disk_on(small: Served, tmp_path: Path) -> None:
    """Its nbd plugin is one more client; its own clients come without having to know of ours."""
    copy = tmp_path / "copy"
    run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 2M", small.blockdev)
    run("nbdkit", "-U", "-", "nbd", f"socket={small.path}", "--run", f'nbdcopy "$uri" {copy}')
    assert copy.read_bytes() == bytes(MIB) + b"\7" * (2 * MIB) + bytes(61 * MIB)
