"""Stock QEMU behind a door: without an operating system, but its device is there and takes what it is told."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.harness import MIB, wait_until

from powervio.gateway import layout
from powervio.gateway.layout import MAGIC, MapEntry
from powervio.gateway.server import Gateway
from powervio.memory.shared_file import SharedFile
from powervio.phyp.hypervisor import Hypervisor

LIMIT = 60.0
_RAM = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio 0, ram\): (?:alias ram-\w+-4g @pc\.ram ([0-9a-f]{16})-|ppc_spapr)"
)


@pytest.mark.parametrize(
    ("arch", "machine", "size"),
    [
        ("x86_64", "q35", 2815 * MIB),
        ("x86_64", "q35", 2816 * MIB),
        ("x86_64", "q35", 6144 * MIB),
        ("ppc64le", "pseries", 3072 * MIB),
    ],
)
def test_map_of_a_machine_is_what_qemu_has(arch: str, machine: str, size: int) -> None:
    """G3.2"""
    program = shutil.which({"x86_64": "qemu-system-x86_64", "ppc64le": "qemu-system-ppc64"}[arch])
    assert program
    said = subprocess.run(
        [
            program, "-accel", "tcg", "-M", machine, "-m", f"{size // MIB}M", "-S", "-nodefaults",
            "-display", "none", "-monitor", "stdio",
        ],
        input="info mtree\nquit\n",
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    ).stdout  # fmt: skip
    found = set()
    for line in said.splitlines():
        match = _RAM.match(line)
        if match:
            start, last = int(match[1], 16), int(match[2], 16)
            found.add(MapEntry(start, last + 1 - start, int(match[3] or "0", 16)))
    assert set(layout.machine_map(arch, size)) == found


class Qemu:
    """QEMU with the device, its processors stopped, talked to by QMP."""

    def __init__(self, folder: Path, door: str, vectors: int) -> None:
        program = shutil.which("qemu-system-x86_64")
        assert program, "qemu-system-x86_64 is not there (Debian: qemu-system-x86)"
        monitor = folder / "qmp"
        monitor.unlink(missing_ok=True)
        self.popen = subprocess.Popen(
            [
                program, "-accel", "tcg", "-M", "q35,memory-backend=m", "-m", "64", "-nodefaults",
                "-display", "none", "-S",
                "-object", f"memory-backend-file,id=m,size=64M,mem-path={folder / 'ram'},share=on",
                "-chardev", f"socket,path={door},id=gate",
                "-device", f"ivshmem-doorbell,chardev=gate,vectors={vectors}",
                "-qmp", f"unix:{monitor},server=on,wait=off",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        wait_until(lambda: monitor.exists() or self.popen.poll() is not None, "QEMU has no monitor")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(monitor))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "event" not in answer:
                return answer["return"]

    def monitor(self, line: str) -> str:
        return str(self.ask("human-monitor-command", **{"command-line": line}))

    def end(self) -> str:
        self.popen.kill()
        assert self.popen.stderr is not None
        said = self.popen.stderr.read()
        self.popen.wait()
        self.popen.stderr.close()
        self._file.close()
        self._socket.close()
        return said


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as made:
        made.start()
        yield made


def test_stock_qemu_takes_the_greeting_and_shows_the_device(tmp_path: Path, gateway: Gateway) -> None:
    """G1.2, G1.3, G3.3"""
    (tmp_path / "ram").write_bytes(bytes(64 * MIB))
    with Hypervisor() as hypervisor:
        guest = hypervisor.adopt_partition("guest", SharedFile.open(str(tmp_path / "ram")))
        hypervisor.create_pair(hypervisor.create_partition("vios1", MIB), guest)
        door = gateway.add(guest, str(tmp_path / "door"), vectors=8)
        qemu = Qemu(tmp_path, door.path, 8)
        try:
            assert door.attached
            assert "1af4:1110" in qemu.monitor("info pci")
            assert "ivshmem" in qemu.monitor("info qtree")
            assert "vectors = 8 " in qemu.monitor("info qtree")
            # what QEMU has in the guest's memory, the hypervisor has too
            guest.memory[0x1000:0x1004] = b"\x01\x02\x03\x04"
            assert "0x04030201" in qemu.monitor("xp /1wx 0x1000")
        finally:
            said = qemu.end()
        assert said == ""
        wait_until(lambda: not door.attached, "the guest is still there")
        again = Qemu(tmp_path, door.path, 8)
        assert door.sessions == 2
        assert again.end() == ""


def test_guest_rings_and_is_answered(tmp_path: Path, gateway: Gateway) -> None:
    """G1.3, G5: the registers of the device, driven by QEMU's test protocol instead of a processor."""
    (tmp_path / "ram").write_bytes(bytes(64 * MIB))
    with Hypervisor() as hypervisor:
        guest = hypervisor.adopt_partition("guest", SharedFile.open(str(tmp_path / "ram")))
        hypervisor.create_pair(hypervisor.create_partition("vios1", MIB), guest)
        door = gateway.add(guest, str(tmp_path / "door"))
        node = next(iter(guest.nodes.values()))
        program = shutil.which("qemu-system-x86_64")
        assert program
        driver = tmp_path / "qtest"
        with socket.socket(socket.AF_UNIX) as ours:
            ours.settimeout(LIMIT)
            popen = subprocess.Popen(
                [
                    program, "-accel", "tcg", "-S", "-M", "q35,memory-backend=m", "-m", "64", "-nodefaults",
                    "-display", "none",
                    "-object", f"memory-backend-file,id=m,size=64M,mem-path={tmp_path / 'ram'},share=on",
                    "-chardev", f"socket,path={door.path},id=gate",
                    "-device", "ivshmem-doorbell,chardev=gate,vectors=2,addr=04.0",
                    "-qtest", f"unix:{driver},server=on,wait=off", "-qtest-log", "none",
                ]
            )  # fmt: skip
            wait_until(lambda: driver.exists() or popen.poll() is not None, "QEMU has no socket")
            ours.connect(str(driver))
            file = ours.makefile("rw")

            def ask(line: str) -> str:
                file.write(line + "\n")
                file.flush()
                answer = file.readline().strip()
                assert answer.startswith("OK"), answer
                return answer[3:]

            def configure(register: int, value: int) -> None:
                ask(f"outl 0xcf8 {0x8000_0000 | 4 << 11 | register:#x}")
                ask(f"outl 0xcfc {value:#x}")

            registers, region = 0xE000_0000, 0xE100_0000
            configure(0x10, registers)
            configure(0x18, region)
            configure(0x1C, 0)
            configure(0x04, 0x0002)
            try:
                assert int(ask(f"readq {region:#x}"), 16) == MAGIC
                slot = region + 0x1000
                words = [0x20, node.windows[0].liobn, 4096, 8192 | 3, 0, 0, 0, 0, 0, 0]
                for index, word in enumerate(words):
                    ask(f"writeq {slot + 8 + 8 * index:#x} {word:#x}")
                ask(f"writeq {slot:#x} 1")
                ask(f"writel {registers + 12:#x} 0")
                wait_until(lambda: int(ask(f"readq {slot + 0x88:#x}"), 16) == 1, "it is not answered")
                assert int(ask(f"readq {slot + 0x90:#x}"), 16) == 0
                assert guest.port.get_tce(node.windows[0].liobn, 4096) == (0, 8192 | 3)
            finally:
                popen.kill()
                popen.wait()
                file.close()
