"""Packages as a part of a guest's root file system."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from tests.boot.archive import Archive, make_kernel, make_package

from powervio.boot import initramfs, root, run, software
from powervio.boot.guest import Terminal
from powervio.boot.machine import MIB, find
from powervio.boot.software import ALIASES, place_of
from powervio.boot.transport import VHOST_USER
from powervio.errors import LocalError


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("./sbin/mke2fs", "usr/sbin/mke2fs"),
        ("./lib64/ld.so.2", "usr/lib64/ld.so.2"),
        ("./usr/bin/perl", "usr/bin/perl"),
        ("./etc/mke2fs.conf", "etc/mke2fs.conf"),
        ("./usr/share/perl/a.pm", "usr/share/perl/a.pm"),
        ("./usr/share/doc/x/copyright", None),
        ("./usr/share/locale/de/x.mo", None),
        ("./usr/lib/x86_64-linux-gnu/gconv/IBM037.so", None),
        ("./usr/../../etc/passwd", None),
        ("./", None),
    ],
)
def test_everything_is_below_usr_and_what_no_program_needs_is_left_out(path: str, place: str | None) -> None:
    assert place_of(path) == place


def test_programs_are_found_whatever_the_layout_of_their_package_and_nothing_replaces_what_is_ours(
    tmp_path: Path,
) -> None:
    old: dict[str, bytes | Path] = {
        "sbin/tool": b"tool",
        "sbin/tool.again": Path("/sbin/tool"),
        "sbin/link": Path("tool"),
        "sbin/poweroff": b"another",
        "lib64/ld.so": b"loader",
        "bin/sh": b"shell",
        "usr/bin/[": b"[",
        "etc/profile": b"another",
    }
    new: dict[str, bytes | Path] = {"lib": Path("usr/lib"), "usr/lib/library.so": b"library"}
    debs = [make_package(tmp_path / f"{name}.deb", name, files) for name, files in (("old", old), ("new", new))]
    packed = initramfs.pack(software.nodes(debs))
    task = root.Task(b"token", "true")
    own = initramfs.pack(node for node in root.nodes(task, b"box", []) if not stat.S_ISCHR(node.mode))
    place = tmp_path / "root"
    for archive in (packed, own):  # as the kernel does: one after the other, the later one wins
        place.mkdir(exist_ok=True)
        subprocess.run(["cpio", "-idu", "--quiet"], input=archive, cwd=place, check=True)
    read = {path: (place / path).read_bytes() for path in ("sbin/tool", "bin/busybox", "lib64/ld.so", "lib/library.so")}
    assert read == {"sbin/tool": b"tool", "bin/busybox": b"box", "lib64/ld.so": b"loader", "lib/library.so": b"library"}
    links = [os.readlink(place / path) for path in ("bin", "lib64", "sbin/link", "sbin/tool.again")]
    assert links == ["usr/bin", "usr/lib64", "tool", "/usr/sbin/tool"]
    assert (place / "sbin/tool").stat().st_mode & 0o111
    assert b"another" not in (place / "sbin/poweroff").read_bytes() + (place / "etc/profile").read_bytes()
    names = [line.split()[1].split(b"=")[0] for line in (place / ALIASES).read_bytes().splitlines()]
    assert names == [b"link", b"poweroff", b"tool", b"tool.again"]
    subprocess.run(["sh", "-n", place / "etc/profile"], check=True)
    pages = {4096: 0, 65536: 0}
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            pages = {page: total + -(-path.stat().st_size // page) * page for page, total in pages.items()}
    for page, total in pages.items():
        assert initramfs.room(packed + own, page) == total + 2 * page  # `poweroff` and `profile` are in both


def test_a_root_file_system_that_does_not_fit_is_refused_with_the_memory_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path / "archive")
    name = "linux-image-6.1-amd64"
    archive.add(make_package(tmp_path / "box.deb", "busybox-static", {"bin/busybox": b"box"}))
    archive.add(make_package(tmp_path / "meta.deb", "linux-image-amd64", {}, depends=name))
    archive.add(make_kernel(tmp_path / "kernel.deb", name=name))
    archive.add(make_package(tmp_path / "big.deb", "big", {"usr/lib/big": bytes(40 * MIB)}))
    monkeypatch.setenv("APT_CONFIG", str(archive.configuration))
    plan = run.Plan(find("x86_64"), 128 * MIB, tmp_path / "cache", VHOST_USER, command="true", packages=("big",))
    with pytest.raises(LocalError) as caught:
        run.run(plan, lambda step: None, Terminal(0, 1))
    assert str(caught.value) == (
        "the guest's root file system has 41 MiB and does not fit in 128 MiB of memory: it needs 185M at least"
    )
