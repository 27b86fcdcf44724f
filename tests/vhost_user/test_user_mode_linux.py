"""User-Mode Linux: the drivers of a real Linux kernel on our back end (`virtio_uml.device=`).

It has one processor, so its virtio_blk takes one queue, whatever MQ offers (QEMU's guests take more: `test_qemu`).
Whatever the back end offers of ring features it passes on, packed rings too, which it starts with a base of 0. It does
not connect again to a back end that was killed, and has no driver for an entropy device; QEMU does, and its guest has.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from tests.vhost_user.harness import recorded_sessions, serving
from tests.vhost_user.linux_guest import LIMIT, admin_program, make_initramfs, uml, uml_module
from tests.vhost_user.program import finish, start

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.storage.image import open_image
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.virtio import block as blk
from powervio.virtio import features as feature

MIB = 1 << 20
SIZE = 16 * MIB
RINGS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def run_guest(folder: Path, device: BlockDevice, script: str, files: dict[str, bytes], *, packed: bool = False) -> str:
    """Serve a disk to a guest that runs a script; its console."""
    initramfs = make_initramfs(folder, script, [uml_module("virtio_blk")], files)
    sessions = recorded_sessions(device)
    with serving(folder, device, BackEndOptions(packed=packed)) as back:
        with uml(folder, initramfs, f"virtio_uml.device={back.path}:2") as guest:
            console = guest.finish()
        assert back.server.failures == []
    assert len(sessions) == 1
    expected = feature.VERSION_1 | feature.EVENT_IDX | feature.INDIRECT_DESC | blk.F_FLUSH | blk.F_MQ
    assert sessions[0] & expected == expected
    assert bool(sessions[0] & feature.RING_PACKED) is packed
    assert device.counters.errors == {}
    return console


@RINGS
def test_linux_writes_syncs_and_reads_our_disk(tmp_path: Path, packed: bool) -> None:
    pattern = os.urandom(MIB)
    script = """
        echo "SIZE $(cat /sys/block/vda/size)"
        echo "SERIAL $(cat /sys/block/vda/serial)"
        dd if=/pattern of=/dev/vda bs=64k conv=fsync 2>/dev/null && echo WRITTEN
        dd if=/pattern of=/dev/vda bs=4k seek=1000 oflag=direct 2>/dev/null && echo DIRECT
        sync
        echo 3 > /proc/sys/vm/drop_caches
        echo "READ $(dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum)"
    """
    with open_image(tmp_path / "image", create_size=SIZE) as image:
        device = BlockDevice(image, BlockOptions(serial="uml-disk", queues=2))
        console = run_guest(tmp_path, device, script, {"pattern": pattern}, packed=packed)
        assert device.counters.flushes > 0
        assert device.counters.bytes_written == 2 * MIB
    for said in (f"SIZE {SIZE // 512}", "SERIAL uml-disk", "WRITTEN", "DIRECT"):
        assert said in console
    assert f"READ {hashlib.md5(pattern).hexdigest()}" in console
    written = (tmp_path / "image").read_bytes()
    assert written[: len(pattern)] == pattern
    assert written[4096000 : 4096000 + len(pattern)] == pattern


@RINGS
def test_fio_in_linux_verifies_what_it_wrote(tmp_path: Path, packed: bool) -> None:
    # three passes at depth 32: random writes, then what was written is read and compared in that order; requests of
    # up to 64 KiB, and two of such jobs beside each other
    script = """
        mount -t hostfs -o ro,/usr none /usr
        fio --output=log --ioengine=libaio --direct=1 --iodepth=32 --bsrange=4k-64k --rw=randwrite --size=8m \
            --filename=/dev/vda --verify=crc32c --verify_fatal=1 --loops=3 --fsync=100 \
            --name=low --name=high --offset=8m
        echo "STATUS $?"
        grep -E 'err=|issued rwts' log
    """
    with open_image(tmp_path / "image", create_size=SIZE) as image:
        device = BlockDevice(image, BlockOptions(queues=2))
        console = run_guest(tmp_path, device, script, {}, packed=packed)
        assert "STATUS 0" in console, console
        assert device.counters.bytes_written == 3 * SIZE
        assert device.counters.bytes_read >= 3 * SIZE
        assert device.counters.flushes > 0


def test_ext4_that_linux_wrote_is_sound(tmp_path: Path) -> None:
    files = 64
    content = os.urandom(MIB)
    script = f"""
        mount -t ext4 /dev/vda /mnt && echo MOUNTED
        mkdir /mnt/folder
        for number in $(seq {files}); do
            dd if=/content of=/mnt/folder/$number bs=16k count=$number 2>/dev/null
        done
        sync
        for number in $(seq 2 2 {files}); do rm /mnt/folder/$number; done
        umount /mnt && echo UNMOUNTED
        mount -t ext4 /dev/vda /mnt
        echo "READ $(cat /mnt/folder/{files - 1} | md5sum)"
        umount /mnt
    """
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 64 * MIB)
    subprocess.run([admin_program("mke2fs"), "-q", "-t", "ext4", path], check=True)
    with open_image(path) as image:
        device = BlockDevice(image, BlockOptions(queues=2))
        console = run_guest(tmp_path, device, script, {"content": content})
        assert device.counters.flushes > 0
    for said in ("MOUNTED", "UNMOUNTED", f"READ {hashlib.md5(content[: (files - 1) << 14]).hexdigest()}"):
        assert said in console, console
    checked = subprocess.run([admin_program("e2fsck"), "-fn", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    dump = subprocess.run(
        [admin_program("debugfs"), "-R", f"dump /folder/{files - 3} {tmp_path}/dumped", path],
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "dumped").read_bytes() == content[: (files - 3) << 14], dump.stderr


@pytest.mark.alone
def test_linux_and_its_operator_talk_over_our_console(tmp_path: Path) -> None:
    console, data = tmp_path / "console", tmp_path / "data"
    script = """
        # the port comes after the console, whose driver throws away what is written before it is ready
        until grep -q data /sys/class/virtio-ports/vport0p1/name 2>/dev/null; do sleep 0.05; done
        exec 3<>/dev/hvc0
        stty raw -echo <&3
        echo 'Linux is here' >&3
        read line <&3
        echo "HEARD $line"
        echo "$line" | tr a-z A-Z >&3
        cat /content > /dev/vport0p1
        echo "DATA $(head -c 1048576 /dev/vport0p1 | md5sum)"
        read line <&3
    """
    content, answer = os.urandom(MIB), os.urandom(MIB)
    initramfs = make_initramfs(tmp_path, script, [uml_module("virtio_console")], {"content": content})
    process = start(
        *("console", "--socket-path", str(tmp_path / "s"), "--console-socket", str(console), "--port", f"data={data}")
    )
    with (
        closing(socket.socket(socket.AF_UNIX)) as operator,
        closing(socket.socket(socket.AF_UNIX)) as stream,
        uml(tmp_path, initramfs, f"virtio_uml.device={tmp_path / 's'}:3") as guest,
    ):
        for end, path in ((operator, console), (stream, data)):
            end.settimeout(LIMIT)
            end.connect(str(path))
        terminal = operator.makefile("rwb", buffering=0)
        assert terminal.readline() == b"Linux is here\n"
        terminal.write(b"hello guest\n")
        assert terminal.readline() == b"HELLO GUEST\n"
        assert stream.makefile("rb").read(MIB) == content
        stream.sendall(answer)
        guest.wait_for(f"DATA {hashlib.md5(answer).hexdigest()}")
        terminal.write(b"bye\n")
        text = guest.finish()
        terminal.close()
    assert "HEARD hello guest" in text
    assert finish(process) == 0
