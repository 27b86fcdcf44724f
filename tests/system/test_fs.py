"""`[[lpar.fs]]`: what is said about mistakes, and shares of running systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from powervio.system.fs_section import Fs
from powervio.system.load import ConfigError, parse

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
