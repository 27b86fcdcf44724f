"""The cache, filled by apt-get from an archive that is made here."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest
from tests.boot.archive import Archive, make_kernel, make_package

from powervio.boot import machine
from powervio.boot.cache import LOGS_KEPT, SETS_KEPT, Cache, default_folder
from powervio.errors import LocalError

ARCH = machine.find("x86_64")


class House:
    """An archive, and a cache that is filled from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = Archive(folder / "archive")
        self.archive.add(make_package(folder / "busybox.deb", "busybox-static", {"bin/busybox": b"box"}))
        self.said: list[str] = []
        self.place = folder / "cache"

    def add_kernel(self, version: str) -> Path:
        """A kernel and the newest package that depends on it; where the kernel's package is."""
        name = f"linux-image-{version}-amd64"
        image = f"image {version}".encode()
        deb = make_kernel(self.folder / f"{version}.deb", name=name, version=version, image=image)
        newest = f"{name} (= {version})"
        meta = self.folder / f"meta-{version}.deb"
        self.archive.add(make_package(meta, "linux-image-amd64", {}, version=version, depends=newest))
        return self.archive.add(deb)

    def get(self, *, refresh: bool = False) -> bytes:
        """The image of the cache's kernel."""
        kernel, busybox = Cache(self.place, self.said.append).get(ARCH, refresh=refresh)
        assert busybox.read_bytes() == b"box"
        assert list(self.place.glob("scratch-*")) == []
        return kernel.image.read_bytes()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    made = House(tmp_path)
    monkeypatch.setenv("APT_CONFIG", str(made.archive.configuration))
    return made


def test_the_newest_kernel_is_fetched_once_and_kept_until_it_is_refreshed(house: House) -> None:
    house.add_kernel("6.1")
    assert house.get() == b"image 6.1"
    assert [line.split(" (")[0] for line in house.said] == [
        "fetching the lists of packages for amd64",
        "downloading busybox-static 1, linux-image-6.1-amd64 6.1 for amd64",
        "unpacking linux-image-6.1-amd64_6.1_amd64.deb",
    ]
    house.said.clear()
    house.add_kernel("6.2")
    assert (house.get(), house.said) == (b"image 6.1", [])
    assert house.get(refresh=True) == b"image 6.2"
    assert house.get() == b"image 6.2"


def test_a_kernel_that_the_mirror_does_not_have_yet_is_passed_over(house: House) -> None:
    house.add_kernel("6.1")
    house.add_kernel("6.2").unlink()
    assert house.get() == b"image 6.1"


def test_a_kernel_that_cannot_be_had_leaves_the_old_one(house: House) -> None:
    house.add_kernel("6.1").unlink()
    with pytest.raises(LocalError, match=r"cannot download linux-image-6\.1-amd64 for amd64: "):
        house.get()
    assert list(house.place.glob("scratch-*")) == []
    assert not (house.place / "x86_64/kernel").exists()
    house.add_kernel("6.0")
    assert house.get() == b"image 6.0"
    with pytest.raises(LocalError, match=r"no package linux-image-powerpc64le|no package busybox-static"):
        Cache(house.place, house.said.append).get(machine.find("ppc64le"))


def test_what_a_killed_predecessor_left_is_removed(house: House) -> None:
    house.add_kernel("6.1")
    (house.place / "scratch-old/apt").mkdir(parents=True)
    assert house.get() == b"image 6.1"


def test_a_set_of_packages_is_fetched_once_with_what_it_depends_on_and_nothing_is_installed(house: House) -> None:
    tool = {"usr/sbin/tool": b"tool", "usr/share/doc/tool/copyright": b"x"}
    house.archive.add(make_package(house.folder / "tool.deb", "tool", tool, depends="library (>= 1)"))
    house.archive.add(make_package(house.folder / "library.deb", "library", {"lib/library.so": b"library"}))
    cache = Cache(house.place, house.said.append)
    packed = cache.get_packages(ARCH, ["tool"])
    names = (b"usr/sbin/tool", b"usr/lib/library.so", b"copyright")
    assert [name in packed.read_bytes() for name in names] == [True, True, False]
    assert [line.split(" (")[0] for line in house.said] == [
        "fetching the lists of packages for amd64",
        "downloading tool with what is needed, 2 packages, for amd64",
        "unpacking tool, and what is needed",
    ]
    house.said.clear()
    assert (cache.get_packages(ARCH, ["tool", "tool"]), house.said) == (packed, [])
    both = cache.get_packages(ARCH, ["library", "tool"])
    assert both == cache.get_packages(ARCH, ["tool", "library"]) != packed
    for number in range(SETS_KEPT):
        (both.parent.parent / f"packages-{number}").mkdir()
    assert cache.get_packages(ARCH, ["tool"]).exists()
    assert len(list(both.parent.parent.glob("packages-*"))) == SETS_KEPT
    assert list(house.place.glob("scratch-*")) == []


def test_packages_that_cannot_be_had_are_told(house: House) -> None:
    house.archive.add(make_package(house.folder / "tool.deb", "tool", {}, depends="nowhere (>= 1)"))
    house.archive.add(make_package(house.folder / "lost.deb", "lost", {})).unlink()
    cache = Cache(house.place, house.said.append)
    for name, problem in (
        ("too.*", r"'too\.\*' is no name of a package"),
        ("tool-", "no package tool- for amd64: "),
        ("tool", "tool cannot be installed on amd64: tool : Depends: nowhere"),
        ("lost", "cannot download lost for amd64: "),
    ):
        with pytest.raises(LocalError, match=problem):
            cache.get_packages(ARCH, [name])
    assert [path.name for path in (house.place / "x86_64").iterdir()] == []


def test_two_at_once_fill_it_once(house: House) -> None:
    house.add_kernel("6.1")
    cache = Cache(house.place, house.said.append)
    with (house.place / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threads = [threading.Thread(target=cache.get, args=(ARCH,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.5)
            assert thread.is_alive()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sum(line.startswith("waiting for another process") for line in house.said) == 2
    assert sum(line.startswith("unpacking") for line in house.said) == 1


def test_a_damaged_entry_is_told(house: House) -> None:
    house.add_kernel("6.1")
    house.get()
    (house.place / "x86_64/kernel/about.json").write_text("{")
    with pytest.raises(LocalError, match=r"cache .*kernel is damaged"):
        house.get()
    assert house.get(refresh=True) == b"image 6.1"


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, print)
    for number in range(LOGS_KEPT + 3):
        log = cache.new_log()
        log.with_name(f"{number}.log").touch()
    assert len(list((tmp_path / "logs").iterdir())) <= LOGS_KEPT


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_folder() == Path("/c/powervio/boot")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert default_folder() == Path("/h/.cache/powervio/boot")
