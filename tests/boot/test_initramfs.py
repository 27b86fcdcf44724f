"""The archive, as cpio reads it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from powervio.boot import initramfs, root
from powervio.boot.initramfs import Node, character_device, file, folder, link


def cpio(archive: bytes, *options: str, cwd: Path) -> bytes:
    return subprocess.run(["cpio", "-i", "--quiet", *options], input=archive, cwd=cwd, stdout=-1, check=True).stdout


def test_cpio_lists_what_was_packed(tmp_path: Path) -> None:
    archive = initramfs.pack(
        [folder("bin"), file("bin/prog", b"x" * 5, 0o755), link("bin/sh", "prog"), folder("dev"),
         character_device("dev/console", 5, 1)]
    )  # fmt: skip
    lines = cpio(archive, "-tvn", cwd=tmp_path).decode().splitlines()
    assert [(line.split()[0], line.split("1970 ")[1]) for line in lines] == [
        ("drwxr-xr-x", "bin"),
        ("-rwxr-xr-x", "bin/prog"),
        ("lrwxrwxrwx", "bin/sh -> prog"),
        ("drwxr-xr-x", "dev"),
        ("crw-------", "dev/console"),
    ]
    assert lines[1].split()[1:5] == ["1", "0", "0", "5"]
    assert lines[4].split()[4:6] == ["5,", "1"]


def test_cpio_unpacks_names_and_contents_of_any_length(tmp_path: Path) -> None:
    contents = {"n" * length: os.urandom(length * 3) for length in range(1, 20)} | {"empty": b"", "large": bytes(70000)}
    cpio(initramfs.pack(file(name, content) for name, content in contents.items()), cwd=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("path", ["", "/init", "a\0b", "TRAILER!!!"])
def test_a_path_that_no_archive_can_have_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="bad path"):
        initramfs.pack([Node(path, 0o100644)])


def test_the_root_has_the_command_as_a_file_and_nowhere_else() -> None:
    command = "echo 'secret \"quoted' $HOME"
    task = root.Task(b"token", command)
    nodes = {node.path: node for node in root.nodes(task, b"busybox", [("b.ko", b"2"), ("a.ko", b"1")])}
    assert nodes["run/command"].content == command.encode() + b"\n"
    assert [path for path, node in nodes.items() if b"secret" in node.content] == ["run/command"]
    assert [path for path in nodes if path.startswith("modules/")] == ["modules/00-b.ko", "modules/01-a.ko"]
    assert nodes["init"].mode == 0o100755
    subprocess.run(["sh", "-n"], input=nodes["init"].content, check=True)
    assert initramfs.pack(nodes.values()).count(b"070701") >= len(nodes)


@pytest.mark.parametrize("adapters", [0, 2])
def test_the_block_driver_is_loaded_last_and_of_adapters_when_they_have_come(adapters: int) -> None:
    script = root.init(root.Task(b"token", "true", adapters=adapters))
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert script.index("insmod $module") < script.index("powervio.control") < script.index("insmod $blk")
    assert ("-ge 2 ]" in script) == ("virtio_blk/bind" in script) == (adapters == 2)


def test_programs_are_in_bin_and_options_at_the_driver_alone() -> None:
    task = root.Task(b"token", "true", driver_options=("shared_tce=0", "pool_kib=64"))
    nodes = {node.path: node for node in root.nodes(task, b"busybox", [("a.ko", b"1")], [("tool", b"elf")])}
    assert (nodes["bin/tool"].content, nodes["bin/tool"].mode) == (b"elf", 0o100755)
    script = nodes["init"].content
    subprocess.run(["sh", "-n"], input=script, check=True)
    assert script.count(b"shared_tce") == 1
    assert b"*-virtio_vio.ko) insmod $module shared_tce=0 pool_kib=64 ;;" in script
    assert b"insmod $module  ;;" in root.init(root.Task(b"token", "true")).encode()


def test_the_shell_s_script_is_sound() -> None:
    script = root.init(root.Task(b"token", None, "a'b"))
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert "setsid" in script
