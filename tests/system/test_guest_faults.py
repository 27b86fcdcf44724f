"""Real Linux guests whose disks, VIO servers and hypervisors come, go and fail while there is I/O in flight."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from powervio.boot.guest import GuestFailed

from .guest_at_door import BLOCK, MIB, boot, declare
from .harness import House, wait_for

BOTH = pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

AWAY = 3.0
"""Seconds for which a hypervisor is stopped."""
RELOAD = """\
reload() {
    rmmod virtio_vio || fail rmmod
    until_so test ! -b /dev/vda
    insmod /modules/*-virtio_vio.ko $* || fail insmod
    until_so test -b /dev/vda
    dmesg -c >/dev/null
}
"""


class Writing:
    """Sees on the host that a guest is writing."""

    def __init__(self, image: Path, block: int = 300) -> None:
        self._image = image
        self._place = block * BLOCK
        self._before = b""

    def _read(self) -> bytes:
        with self._image.open("rb") as file:
            file.seek(self._place)
            return file.read(BLOCK)

    def remember(self) -> None:
        self._before = self._read()

    def wait(self) -> None:
        wait_for(lambda: self._read() != self._before, 60)


def kill_and_start_server(house: House, writing: Writing) -> Callable[[], None]:
    """`kill -9` of the VIO server's process while the guest writes, and another one at once."""

    def happen() -> None:
        (vios,) = house.ps()["vios"]
        writing.wait()
        os.kill(vios["pid"], signal.SIGKILL)
        wait_for(lambda: house.ps()["vios"][0]["state"] == "terminated")
        house.ok("activate", "vios1")
        writing.remember()

    return happen


@pytest.mark.parametrize(("arch", "cpus"), [("x86_64", 1), ("x86_64", 4), ("ppc64le", 1)])
def test_a_vio_server_that_is_killed_while_a_guest_writes_costs_nothing_whatever_the_driver_does(
    house: House, boot_cache: Path, arch: str, cpus: int
) -> None:
    file = declare(house, arch, [("disk.img", 128 * MIB)], disk=f"queues = {cpus}", vios="process = true")
    process = house.up(file)
    writing = Writing(house.folder / "disk.img")
    modes = ["", "shared_tce=0"]
    if cpus == 1:
        modes += ["packed=0", "shared_tce=0 packed=0", "revision=0"]
    lines = []
    for number, mode in enumerate(modes, 1):
        lines.append(f"""
reload {mode}
echo 'HOST kill'
for part in {" ".join(map(str, range(cpus)))}; do
    taskset -c $part guest_io /dev/vda write 32 $((part * 2048)) $((8192 / {cpus})) {number} >/tmp/wrote.$part 2>&1 &
done
wait
grep -qx {8192 // cpus} /tmp/wrote.* || fail "{mode}: writing: $(cat /tmp/wrote.*)"
quiet '{mode}'
[ "$(state sessions)" -gt 1 ] || fail "{mode}: it wrote before the server was killed"
for part in {" ".join(map(str, range(cpus)))}; do
    guest_io /dev/vda check 32 $((part * 2048)) $((8192 / {cpus})) {number} || fail "{mode}: another content"
done
echo 'DONE {mode}:' $(state revision) $(state ring) $(state tce) $(ls /sys/block/vda/mq | wc -l)
""")
    happenings = {"kill": kill_and_start_server(house, writing)}
    status, said = boot(house, boot_cache, RELOAD + "".join(lines), happenings, cpus=cpus)
    assert status == 0, said
    expected = {
        "": "1 packed shared",
        "shared_tce=0": "1 packed hcalls",
        "packed=0": "1 split shared",
        "shared_tce=0 packed=0": "1 split hcalls",
        "revision=0": "0 split shared",
    }
    done = [line.removeprefix("DONE ") for line in said.splitlines() if line.startswith("DONE ")]
    assert done == [f"{mode}: {expected[mode]} {cpus}" for mode in modes], said
    house.end(process)


@BOTH
def test_a_guest_that_is_killed_while_it_writes_leaves_the_server_to_the_next(
    house: House, boot_cache: Path, arch: str
) -> None:
    process = house.up(declare(house, arch, [("disk.img", 64 * MIB)], vios="process = true"))
    writing = Writing(house.folder / "disk.img")

    def kill() -> None:
        writing.wait()
        for pid in Path("/proc").glob("[0-9]*"):
            if f"{house.folder}/powervio/guest1@s.door".encode() in (pid / "cmdline").read_bytes():
                os.kill(int(pid.name), signal.SIGKILL)

    command = "echo 'HOST kill'; while :; do guest_io /dev/vda write 32 0 8192 1 >/dev/null || fail writing; done"
    with pytest.raises(GuestFailed, match="QEMU ended with status -9"):
        boot(house, boot_cache, command, {"kill": kill})
    wait_for(lambda: not house.ps()["lpar"][0]["door"]["attached"])
    command = """
        guest_io /dev/vda write 32 0 2048 2 && guest_io /dev/vda check 32 0 2048 2 || fail 'the next guest'
        quiet all
        state sessions
    """
    status, said = boot(house, boot_cache, command, {})
    assert (status, said) == (0, "2048\n2048\n1\n")
    house.end(process)


@BOTH
def test_file_systems_on_two_disks_at_once_are_sound(house: House, boot_cache: Path, arch: str) -> None:
    process = house.up(declare(house, arch, [("a.img", 256 * MIB), ("b.img", 192 * MIB)]))
    command = """
        (
            mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt || fail mkfs
            for n in 1 2 3; do dd if=/dev/urandom of=/mnt/$n bs=64k count=$((n * 100)) 2>/dev/null || fail write; done
            rm /mnt/1 && md5sum /mnt/2 /mnt/3 >/tmp/before && umount /mnt || fail umount
            e2fsck -f -n /dev/vdb || fail e2fsck
            mount /dev/vdb /mnt && md5sum -c /tmp/before && umount /mnt || fail 'what was written'
            touch /tmp/sound
        ) &
        dd if=/dev/urandom of=/tmp/piece bs=8388600 iflag=fullblock count=1 2>/dev/null
        for n in $(seq 100 131); do printf %08d $n; cat /tmp/piece; done >/dev/vda || fail 'the whole disk'
        sync
        rm /tmp/piece
        echo 3 >/proc/sys/vm/drop_caches
        md5sum </dev/vda >/tmp/sum || fail 'reading it'
        wait
        [ -e /tmp/sound ] || fail 'the file system'
        quiet all
        cat /tmp/sum
    """
    status, said = boot(house, boot_cache, command, {}, packages=["e2fsprogs"])
    assert status == 0, said
    house.end(process)
    image = (house.folder / "a.img").read_bytes()
    assert said.splitlines()[-1].split()[0] == hashlib.md5(image).hexdigest(), said
    piece = image[8 : 8 * MIB]
    assert piece.count(bytes(64)) == 0
    assert image == b"".join(b"%08d" % number + piece for number in range(100, 132))


@BOTH
def test_disks_come_grow_and_go_while_the_guest_uses_them(house: House, boot_cache: Path, arch: str) -> None:
    process = house.up(declare(house, arch, [("disk.img", 64 * MIB)]))
    more = house.image("more.img", 256 * MIB)
    writing = Writing(more, 40)
    gone: list[str] = []

    def force() -> None:
        writing.wait()
        gone.append(house.ok("detach", "guest1/3", "--force"))

    happenings: dict[str, Callable[[], object]] = {
        "grow": lambda: house.ok("resize", "guest1/2", "96M"),
        "attach": lambda: house.ok("attach", "guest1", "--image", "more.img"),
        "detach": lambda: gone.append(house.ok("detach", "guest1/3")),
        "force": force,
    }
    command = """
        echo 'HOST grow'
        until_so grep -qx 196608 /sys/block/vda/size
        guest_io /dev/vda write 32 20000 2048 1 && guest_io /dev/vda check 32 20000 2048 1 || fail grow
        guest_io /dev/vda write 32 0 16384 2 >/tmp/wrote &
        echo 'HOST attach'
        until_so test -b /dev/vdb
        dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' y >/dev/vdb || fail dd
        echo 'HOST detach'
        until_so test ! -b /dev/vdb
        quiet detach
        echo 'HOST attach'
        until_so test -b /dev/vdb
        echo 'HOST force'
        guest_io /dev/vdb write 32 0 65536 3 >/tmp/forced && fail 'it wrote all before the disk was taken'
        until_so test ! -b /dev/vdb
        dmesg -r | grep -E 'WARNING|BUG|Call Trace|blocked for more' && fail 'the log after detach --force'
        dmesg -c >/dev/null
        wait
        grep -qx 16384 /tmp/wrote || fail "the other disk: $(cat /tmp/wrote)"
        guest_io /dev/vda check 32 0 16384 2 || fail 'the other disk'
        quiet all
        cat /tmp/forced
        ls /sys/block
    """
    status, said = boot(house, boot_cache, command, happenings)
    assert status == 0, said
    assert len(gone) == 2
    assert said.splitlines()[-2:] == ["a block failed: 5", "vda"], said
    assert (house.folder / "disk.img").stat().st_size == 96 * MIB
    house.end(process)


def stop(process: subprocess.Popen[str], writing: Writing, seconds: float | None) -> Callable[[], None]:
    """Stop the hypervisor while the guest writes, and let it go on if that is said."""

    def happen() -> None:
        writing.wait()
        process.send_signal(signal.SIGSTOP)
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)

    return happen


@BOTH
def test_a_hypervisor_that_is_stopped_for_a_while_fails_no_request(house: House, boot_cache: Path, arch: str) -> None:
    process = house.up(declare(house, arch, [("disk.img", 64 * MIB)]))
    happenings = {"stop": stop(process, Writing(house.folder / "disk.img"), AWAY)}
    command = """
        echo 'HOST stop'
        guest_io /dev/vda write 32 0 16384 1 && guest_io /dev/vda check 32 0 16384 1 || fail writing
        quiet all
    """
    status, said = boot(house, boot_cache, command, happenings)
    assert (status, said) == (0, "HOST stop\n16384\n16384\n")
    house.end(process)


@pytest.mark.parametrize("shared", [0, 1])
@BOTH
def test_a_hypervisor_that_never_comes_back_fails_the_guest_s_requests(
    house: House, boot_cache: Path, arch: str, shared: int
) -> None:
    process = house.up(declare(house, arch, [("disk.img", 64 * MIB)]))
    happenings = {"stop": stop(process, Writing(house.folder / "disk.img"), None)}
    command = """
        echo 'HOST stop'
        while guest_io /dev/vda write 32 0 16384 1 >/tmp/said; do :; done
        cat /tmp/said
        state state
        dd if=/dev/vda of=/dev/null bs=4k count=1 2>/dev/null && fail 'a read that succeeds'
        dmesg -r | grep -E 'WARNING|BUG|Call Trace|blocked for more|stall' && fail 'the log'
        sync
    """
    try:
        status, said = boot(house, boot_cache, command, happenings, options=["stall_limit=3", f"shared_tce={shared}"])
    finally:
        process.send_signal(signal.SIGCONT)
    assert (status, said) == (0, "HOST stop\na block failed: 5\nlost\n")
    house.end(process)


@BOTH
def test_requests_of_a_share_fail_when_the_hypervisor_never_comes_back(
    house: House, boot_cache: Path, arch: str
) -> None:
    file = declare(house, arch, [])
    share = house.folder / "share"
    share.mkdir()
    (share / "name").write_text("content\n")
    with (house.folder / file).open("a") as text:
        text.write('[[lpar.fs]]\nvios = "vios1"\ndir = "share"\ntag = "share"\n')
    process = house.up(file)
    command = """
        until_so mount -t 9p -o trans=virtio,version=9p2000.L share /mnt
        cat /mnt/name
        echo 'HOST stop'
        while cat /mnt/name >/dev/null 2>/tmp/said; do :; done
        cat /tmp/said
        state state
        ls /mnt/other 2>&1 && fail 'a request that succeeds'
        umount -l /mnt
        dmesg -r | grep -E 'WARNING|BUG|Call Trace|blocked for more|stall' && fail 'the log'
        true
    """
    happenings = {"stop": lambda: process.send_signal(signal.SIGSTOP)}
    try:
        status, said = boot(house, boot_cache, command, happenings, options=["stall_limit=3"])
    finally:
        process.send_signal(signal.SIGCONT)
    assert status == 0, said
    assert said.count("Input/output error") == 2, said
    assert "\nlost\n" in said
    house.end(process)
