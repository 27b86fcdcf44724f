"""The guest's driver: its headers from an archive that is made here, and real builds for Debian's kernels."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.boot.archive import make_headers
from tests.boot.test_cache import ARCH, House

from powervio.boot import machine, module, programs
from powervio.boot.cache import BUILD_LOG, Cache, Kernel
from powervio.boot.module import Compiler, Sources
from powervio.errors import LocalError


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    made = House(tmp_path)
    monkeypatch.setenv("APT_CONFIG", str(made.archive.configuration))
    return made


@pytest.fixture
def driver(tmp_path: Path) -> Sources:
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "Makefile").write_text("obj-m := driver.o\n")
    (folder / "driver.c").write_text("int driver;\n")
    return Sources(folder, "driver")


def get(house: House, driver: Sources) -> Kernel:
    house.said.clear()
    return Cache(house.place, house.said.append).get(ARCH, sources=driver)[0]


def built(kernel: Kernel) -> Path:
    return next(path for path in kernel.modules if path.name == "driver.ko")


def add_headers(house: House, version: str) -> list[Path]:
    return [house.archive.add(deb) for deb in make_headers(house.folder, version)]


def test_kernel_and_headers_come_in_one_run_and_the_second_time_nothing_is_done(house: House, driver: Sources) -> None:
    house.add_kernel("6.1")
    add_headers(house, "6.1")
    first = get(house, driver)
    assert [line.split(" (")[0] for line in house.said] == [
        "fetching the lists of packages for amd64",
        "downloading busybox-static 1, linux-image-6.1-amd64 6.1, linux-headers-6.1-amd64 6.1, linux-headers-6.1-common"
        " 6.1, linux-kbuild-6.1 6.1 for amd64",
        "unpacking linux-image-6.1-amd64_6.1_amd64.deb",
        "unpacking linux-headers-6.1-amd64_6.1_amd64.deb, and what it needs",
        "building driver for 6.1-amd64 with gcc",
    ]
    assert built(first).read_bytes().startswith(b"\x7fELF")
    headers = first.image.parent / "headers"
    assert sorted(path.name for path in headers.rglob("*") if path.is_file()) == [
        ".kernelvariables", "Makefile", "Makefile", "a.h", "c", "tool",
    ]  # fmt: skip
    assert get(house, driver) == first
    assert house.said == []
    (driver.folder / "driver.c").write_text("int driver = 1;\n")
    second = get(house, driver)
    assert house.said == ["building driver for 6.1-amd64 with gcc"]
    assert built(second) != built(first)
    assert built(first).exists()
    assert list(house.place.glob("scratch-*")) == []


def test_a_kernel_that_is_here_gets_its_headers_later(house: House, driver: Sources) -> None:
    house.add_kernel("6.1")
    house.get()
    with pytest.raises(LocalError, match=r"linux-headers-6\.1-amd64"):
        get(house, driver)
    add_headers(house, "6.1")
    house.add_kernel("6.2")
    assert get(house, driver).image.read_bytes() == b"image 6.1"
    assert (
        "downloading linux-headers-6.1-amd64 6.1, linux-headers-6.1-common 6.1, linux-kbuild-6.1 6.1" in house.said[1]
    )


def test_a_kernel_whose_headers_are_gone_makes_way_for_one_that_has_them(house: House, driver: Sources) -> None:
    house.add_kernel("6.1")
    house.get()
    house.add_kernel("6.2")
    add_headers(house, "6.2")
    assert get(house, driver).image.read_bytes() == b"image 6.2"
    assert any("so a newer kernel is fetched" in line for line in house.said)


def test_the_headers_of_a_named_package_are_found_by_its_version_or_missed(
    house: House, driver: Sources, tmp_path: Path
) -> None:
    deb = house.add_kernel("6.1")
    add_headers(house, "6.2")
    cache = Cache(house.place, house.said.append)
    with pytest.raises(LocalError, match=r"no headers to build the guest's driver with: no package linux-headers-6\.1"):
        cache.get(ARCH, deb=deb, sources=driver)
    add_headers(house, "6.1")
    kernel, _ = cache.get(ARCH, deb=deb, sources=driver)
    assert built(kernel).exists()


def test_a_compiler_s_complaint_is_told_and_nothing_is_left(house: House, driver: Sources) -> None:
    house.add_kernel("6.1")
    add_headers(house, "6.1")
    (driver.folder / "driver.c").write_text("int driver = nonsense;\n")
    with pytest.raises(LocalError, match=r"the module driver cannot be built: .*driver\.c:1:14: error: 'nonsense'"):
        get(house, driver)
    assert list(house.place.glob("**/module-*")) == []
    assert list(house.place.glob("scratch-*")) == []
    with pytest.raises(LocalError, match=r"there are no sources of the module driver"):
        get(house, Sources(house.folder / "archive", "driver"))


def test_only_the_newest_builds_are_kept(house: House, driver: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powervio.boot.cache.MODULES_KEPT", 2)
    house.add_kernel("6.1")
    add_headers(house, "6.1")
    for number in range(3):
        (driver.folder / "driver.c").write_text(f"int driver = {number};\n")
        kernel = get(house, driver)
    assert built(kernel).exists()
    assert len(list(kernel.image.parent.glob("module-*"))) == 2


def test_what_is_missing_is_named_before_anything_is_fetched(
    house: House, driver: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(house.folder))
    with pytest.raises(
        LocalError, match=r"powerpc64le-linux-gnu-gcc and make missing: apt-get install gcc-powerpc64le-l"
    ):
        Cache(house.place, house.said.append).get(machine.find("ppc64le"), sources=driver)
    if platform.machine() == ARCH.name:
        with pytest.raises(LocalError, match=r"gcc and make missing: apt-get install gcc make"):
            Compiler.of(ARCH)
    assert house.said == []


def test_products_of_a_build_are_no_sources(driver: Sources) -> None:
    before = driver.digest()
    for name in ("driver.o", "driver.mod.c", ".driver.o.cmd", "Module.symvers"):
        (driver.folder / name).touch()
    assert driver.digest() == before
    assert [path.name for path in driver.files()] == ["Makefile", "driver.c"]


def test_a_module_is_loaded_right_after_what_it_needs(tmp_path: Path) -> None:
    made = tmp_path / "new.ko"
    made.write_bytes(b"\0depends=virtio,virtio-ring,gone\0")
    names = ("virtio_ring", "virtio", "virtio_blk")
    kernel = Kernel("package", "1", tmp_path, tuple(Path(f"{name}.ko") for name in names)).with_module(made)
    assert [path.stem for path in kernel.modules] == ["virtio_ring", "virtio", "new", "virtio_blk"]
    made.write_bytes(b"\0depends=\0")
    assert kernel.with_module(made).modules[0] == made


@pytest.mark.timeout(300)  # the first test fills the cache
@pytest.mark.parametrize("name", ["x86_64", "ppc64le"])
def test_our_driver_builds_for_debian_s_kernel_without_a_warning(boot_cache: Path, name: str) -> None:
    kernel, _ = Cache(boot_cache, print).get(machine.find(name), sources=module.sources())
    check_build(kernel)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_our_driver_builds_for_a_newer_kernel(tmp_path: Path, boot_cache: Path) -> None:
    """6.12, which bookworm has in its security archive, or the machine's own kernel where that is newer."""
    listed = subprocess.run(["apt-cache", "pkgnames", "linux-image-6."], capture_output=True, text=True, check=True)
    names = re.findall(r"^linux-image-6\.(\d\d)\.\S*-cloud-amd64$", listed.stdout, re.MULTILINE)
    assert names, "this machine's sources have no kernel from 6.10 on"
    (newest,) = sorted(re.findall(rf"^linux-image-6\.{max(names)}\.\S*-cloud-amd64$", listed.stdout, re.MULTILINE))[-1:]
    subprocess.run(["apt-get", "-q", "download", newest], cwd=tmp_path, check=True, capture_output=True, timeout=200)
    (deb,) = tmp_path.glob("*.deb")
    kernel, _ = Cache(boot_cache, print).get(ARCH, deb=deb, sources=module.sources())
    check_build(kernel)


def check_build(kernel: Kernel) -> None:
    driver = next(path for path in kernel.modules if path.stem == module.NAME)
    made_for = kernel.package.removeprefix("linux-image-")
    assert f"vermagic={made_for} ".encode() in driver.read_bytes()
    said = (driver.parent / BUILD_LOG).read_text()
    assert re.search(r"\bLD \[M\] .*virtio_vio\.ko", said), said
    assert "warning:" not in said, said


def test_an_installed_package_has_the_sources(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path / "lib"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    installed = Sources(tmp_path / "lib/powervio/boot" / module.NAME)
    assert installed.digest() == module.sources().digest()
    source = programs.GUEST_IO.source
    assert (installed.folder.parent / source.name).read_bytes() == source.read_bytes()


BUILD = """
import sys
from setuptools import Distribution
distribution = Distribution()
distribution.parse_config_files()
distribution.ext_modules = None
distribution.script_name = "setup.py"
command = distribution.get_command_obj("build_py")
command.build_lib = sys.argv[1]
command.ensure_finalized()
command.run()
"""
