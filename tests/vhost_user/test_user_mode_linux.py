"""User-Mode Linux: the virtio_blk driver of a real Linux kernel on our back end (`virtio_uml.device=`)."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.vhost_user import uml_registers
from tests.vhost_user.harness import serving

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.storage.image import open_image
from powervio.virtio import features as feature

LIMIT = 60
MODULES = Path("/usr/lib/uml/modules")
SIZE = 16 << 20
KERNEL = ("mem=64M", "con=null", "con0=fd:0,fd:1")
INIT = """#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t devtmpfs none /dev
busybox insmod /virtio_blk.ko
echo "SIZE $(busybox cat /sys/block/vda/size)"
echo "SERIAL $(busybox cat /sys/block/vda/serial)"
busybox dd if=/pattern of=/dev/vda bs=64k conv=fsync 2>/dev/null && echo WRITTEN
busybox dd if=/pattern of=/dev/vda bs=4k seek=1000 oflag=direct 2>/dev/null && echo DIRECT
busybox sync
echo 3 > /proc/sys/vm/drop_caches
echo "READ $(busybox dd if=/dev/vda bs=64k count=16 2>/dev/null | busybox md5sum)"
echo DONE
busybox poweroff -f
"""


def make_initramfs(folder: Path, pattern: bytes) -> Path:
    """A root with busybox, the kernel's virtio_blk and the data that the guest writes."""
    root = folder / "root"
    for name in ("bin", "dev", "proc", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (module,) = MODULES.glob("*/kernel/drivers/block/virtio_blk.ko")
    shutil.copy(module, root)
    (root / "pattern").write_bytes(pattern)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), cwd=root, capture_output=True, check=True
    )
    archive = folder / "initramfs"
    archive.write_bytes(made.stdout)
    return archive


def boot(*arguments: str) -> str:
    """Run the kernel until it halts; its console."""
    process = subprocess.Popen(
        [sys.executable, uml_registers.__file__, "linux.uml", *KERNEL, *uml_registers.KERNEL_ARGUMENTS, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=LIMIT)[0].decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_linux_writes_syncs_and_reads_our_disk(tmp_path: Path) -> None:
    pattern = os.urandom(1 << 20)
    archive = make_initramfs(tmp_path, pattern)
    with open_image(tmp_path / "image", create_size=SIZE) as image:
        device = BlockDevice(image, BlockOptions(serial="uml-disk"))
        with serving(tmp_path, device) as back:
            negotiated: list[int] = []
            start = device.start

            def remember(session: object) -> None:
                negotiated.append(session.features)  # type: ignore[attr-defined]
                start(session)  # type: ignore[arg-type]

            device.start = remember  # type: ignore[method-assign]
            console = boot(f"initrd={archive}", f"virtio_uml.device={back.path}:2")
            assert back.server.failures == [], console
        assert f"SIZE {SIZE // 512}" in console
        assert "SERIAL uml-disk" in console
        assert "WRITTEN" in console
        assert "DIRECT" in console
        assert f"READ {hashlib.md5(pattern).hexdigest()}" in console
        assert "DONE" in console
        assert negotiated[0] & feature.VERSION_1
        assert negotiated[0] & feature.EVENT_IDX
        assert device.counters.flushes > 0
        assert device.counters.errors == {}
    written = (tmp_path / "image").read_bytes()
    assert written[: len(pattern)] == pattern
    assert written[4096000 : 4096000 + len(pattern)] == pattern
