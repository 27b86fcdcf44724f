"""`[[lpar.fs]]`: what is said about mistakes, and shares of running systems."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.files.p9_client import SessionClient

from powervio.system.fs_section import Fs, make_device
from powervio.system.load import ConfigError, parse

from .harness import House

SYSTEM = """
[[vios]]
name = "vios1"
[[lpar]]
name = "client1"
memory = "64M"
[[lpar.fs]]
vios = "vios1"
dir = "share"
tag = "share"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


def problems(text: str, folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "s.toml", folder)
    return caught.value.problems


def declared(text: str, folder: Path) -> Fs:
    (section,) = parse(text, "s.toml", folder).lpar[0].fs  # type: ignore[attr-defined]
    assert isinstance(section, Fs)
    return section


def test_paths_are_relative_to_the_file_and_all_else_has_its_default(folder: Path) -> None:
    section = declared(SYSTEM + 'mount = "other/../mnt"\n', folder)
    assert section.dir == str(folder / "share")
    assert section.mount == str(folder / "mnt")
    assert (section.readonly, section.identity, section.translate_uid) == (False, "passthrough", [])
    assert declared(SYSTEM, folder).mount is None


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ('identity = "mapped"\nsquash_uid = 5\n', 'identity: squash_uid and squash_gid are about "squash"'),
        ('identity = "squash"\ntranslate_uid = ["0:1:2"]\n', 'about "passthrough"'),
        ('translate_uid = ["0:1"]\n', "translate_uid"),
        ('translate_uid = ["0:1:0"]\n', "translate_uid: translation 0:1:0 is no range of ids"),
        ('translate_gid = ["0:1:5", "3:9:5"]\n', "translate_gid: translation 3:9:5 overlaps with another"),
        ('socket = "s.sock"\n', "socket: programs use a share by its mount; expected mount"),
        ('mount = "share/inner"\n', "are in each other"),
        ('mount = "."\n', "are in each other"),
        ('unknown = "x"\n', "unknown"),
        ('[[lpar.fs]]\nvios = "vios1"\ndir = "other"\ntag = "share"\n', "tag: share is that of lpar[0].fs[0] already"),
        ('[[lpar.fs]]\nvios = "vios1"\ndir = "file"\ntag = "two"\n', "is no folder"),
        ('[[lpar.fs]]\nvios = "vios1"\ndir = "none"\ntag = "two"\n', "is no folder"),
        ('[[lpar.fs]]\nvios = "vios1"\ndir = "other"\ntag = "a b"\n', "tag: mount tag 'a b'"),
        ('[[lpar.fs]]\nvios = "vios1"\ndir = "other"\ntag = ""\n', "tag"),
        ('[[lpar.fs]]\nvios = "vios2"\ndir = "other"\ntag = "two"\n', '"vios2" is not one of the VIO servers'),
    ],
)
def test_mistakes_are_told(folder: Path, more: str, problem: str) -> None:
    found = problems(SYSTEM + more, folder)
    assert problem in found[0], found


def test_fids_of_a_share_have_the_bound_that_is_said(folder: Path) -> None:
    assert declared(SYSTEM, folder).fids == 1 << 20
    made = make_device(declared(SYSTEM + "fids = 2\n", folder))
    session: Any = made._make()
    client = SessionClient(session)
    client.attach(0)
    client.walk(0, 1)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENFILE):
        client.walk(0, 2)
    session.close()
    made.close()
    (found,) = problems(SYSTEM + "fids = 0\n", folder)
    assert "fids" in found


def test_mount_takes_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (found,) = problems(SYSTEM + 'mount = "mnt"\n', folder)
    assert found.startswith("lpar[0].fs[0].mount: it takes root")


def test_two_shares_are_not_mounted_in_each_other(folder: Path) -> None:
    more = 'mount = "mnt"\n[[lpar.fs]]\nvios = "vios1"\ndir = "other"\ntag = "two"\nmount = '
    (found,) = problems(f'{SYSTEM}{more}"mnt"\n', folder)
    assert found.startswith("lpar[0].fs[1].mount: ")
    (found,) = problems(f'{SYSTEM}{more}"share/x"\n', folder)
    assert "lpar[0].fs[0].dir" in found
    assert len(parse(f'{SYSTEM}{more}"mnt2"\n', "s.toml", folder).lpar[0].fs) == 2  # type: ignore[attr-defined]


def test_guest_has_no_mount_on_the_host(folder: Path) -> None:
    text = SYSTEM.replace('memory = "64M"', 'memory = "256M"\nguest = "door"') + 'mount = "mnt"\n'
    (found,) = problems(text, folder)
    assert found.startswith("lpar[0].fs[0].mount: the partition is a guest")


# -- running systems

MOUNTED = """
[[vios]]
name = "vios1"
[[lpar]]
name = "client1"
memory = "64M"
[[lpar.fs]]
vios = "vios1"
dir = "share"
tag = "share"
mount = "mnt"
[[lpar.fs]]
vios = "vios1"
dir = "other"
tag = "other"
readonly = true
identity = "squash"
squash_uid = 1234
squash_gid = 1234
mount = "mnt2"
"""


@pytest.fixture
def mounted(house: House) -> Iterator[House]:
    for name in ("share", "other", "mnt", "mnt2"):
        (house.folder / name).mkdir()
    (house.folder / "other" / "file").write_text("other")
    (house.folder / "other" / "secret").touch(0o600)
    (house.folder / "s.toml").write_text(MOUNTED)
    yield house
    for name in ("mnt", "mnt2"):
        assert not os.path.ismount(house.folder / name)


def test_mounts_are_the_shares_and_go_with_the_system(mounted: House) -> None:
    process = mounted.up("s.toml")
    share, mount, second = (mounted.folder / name for name in ("share", "mnt", "mnt2"))
    shutil.copytree(Path(__file__).parent, mount / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (share / "tree").iterdir():
        if path.is_file():
            assert path.read_bytes() == (Path(__file__).parent / path.name).read_bytes()
    data = os.urandom(5_000_000)
    (mount / "large").write_bytes(data)
    assert (share / "large").read_bytes() == data
    (share / "from-outside").write_text("x")
    assert (mount / "from-outside").read_text() == "x"
    with (mount / "synced").open("wb") as synced, ThreadPoolExecutor(4) as pool:

        def write(number: int) -> int:
            os.pwrite(synced.fileno(), b"%4d" % number, 4 * number)
            os.fsync(synced.fileno())
            return os.stat(mount / "large").st_size

        assert set(pool.map(write, range(200))) == {len(data)}
    assert (share / "synced").read_bytes() == b"".join(b"%4d" % number for number in range(200))
    with (mount / "large").open("rb") as file:
        (mount / "large").unlink()
        assert file.read() == data
        assert os.fstat(file.fileno()).st_nlink == 0
    assert (second / "file").read_text() == "other"
    with pytest.raises(OSError, match="Read-only"):
        (second / "new").write_text("no")
    with pytest.raises(PermissionError):  # the mount's root is nobody special there
        (second / "secret").read_bytes()
    entry = next(adapter["fs"] for adapter in mounted.ps()["adapters"] if "fs" in adapter)
    assert (entry["tag"], entry["mount"], entry["readonly"]) == ("share", str(mount), False)
    assert entry["counters"]["bytes_read"] >= len(data)
    assert entry["counters"]["bytes_written"] >= len(data)
    said = mounted.ok("ps")
    assert f"{share} as share, mounted at {mount}" in said
    assert f"{mounted.folder / 'other'} as other (readonly, squash), mounted at {second}" in said
    mounted.end(process)
    assert os.listdir(mount) == []


def test_vio_server_that_boots_again_serves_the_same_files_or_says_that_they_are_stale(mounted: House) -> None:
    process = mounted.up("s.toml")  # F4.3
    share, mount = mounted.folder / "share", mounted.folder / "mnt"
    (share / "kept").write_bytes(b"a" * 10_000)
    (share / "gone").write_bytes(b"b" * 10_000)
    kept = os.open(mount / "kept", os.O_RDWR)
    gone = os.open(mount / "gone", os.O_RDWR)
    try:
        assert os.pread(kept, 5, 0) == b"aaaaa"
        assert os.pread(gone, 5, 0) == b"bbbbb"
        mounted.ok("terminate", "vios1")
        os.rename(share / "gone", share / "elsewhere")
        (share / "gone").write_bytes(b"c" * 10_000)
        mounted.ok("activate", "vios1")
        assert os.pwrite(kept, b"new", 3) == 3
        assert (share / "kept").read_bytes()[:8] == b"aaanewaa"
        with pytest.raises(OSError, match=r"[Ss]tale") as stale:
            os.pwrite(gone, b"new", 0)
        assert stale.value.errno == errno.ESTALE
        assert (share / "gone").read_bytes() == b"c" * 10_000
        assert (share / "elsewhere").read_bytes() == b"b" * 10_000
    finally:
        os.close(kept)
        os.close(gone)
    mounted.end(process)


def test_killed_system_leaves_a_mount_that_the_next_one_takes_away(mounted: House) -> None:
    process = mounted.up("s.toml")
    process.kill()
    process.communicate(timeout=10)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.folder / "mnt")
    process = mounted.up("s.toml")
    (mounted.folder / "mnt" / "file").write_text("again")
    assert (mounted.folder / "share" / "file").read_text() == "again"
    mounted.end(process)


def test_mount_where_there_is_no_folder_is_told(mounted: House) -> None:
    (mounted.folder / "mnt2").rmdir()
    said = mounted.refused("up", "s.toml")
    assert "mnt2" in said
    assert "No such file" in said
    (mounted.folder / "mnt2").mkdir()


def test_share_in_the_clients_thread(mounted: House) -> None:
    text = (mounted.folder / "s.toml").read_text().replace('name = "vios1"\n', 'name = "vios1"\nthread = false\n', 1)
    (mounted.folder / "s.toml").write_text(text)
    process = mounted.up("s.toml")
    (mounted.folder / "mnt" / "file").write_text("x" * 100_000)
    assert (mounted.folder / "share" / "file").read_text() == "x" * 100_000
    mounted.end(process)
