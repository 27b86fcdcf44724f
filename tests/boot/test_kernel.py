"""Kernels as Debian packages, made here by dpkg-deb: what is taken out of them, and in which order it is loaded."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
from pathlib import Path

import pytest
from tests.boot.archive import MODULES, make_kernel, module
from tests.boot.program import run

from powervio.boot import kernel, machine
from powervio.boot.cache import Cache
from powervio.errors import LocalError


def test_modules_come_in_the_order_in_which_they_can_be_loaded(tmp_path: Path) -> None:
    contents = kernel.read_package(make_kernel(tmp_path / "kernel.deb"))
    assert contents.image == b"image"
    order = list(contents.order)
    assert sorted(order) == sorted(set(MODULES) - {"other"})
    for name in order:
        assert contents.modules[name] == module(MODULES[name])
        needs = [need.replace("-", "_") for need in MODULES[name] if need != "built_in"]
        assert all(order.index(need) < order.index(name) for need in needs)


def test_loading_order_takes_what_is_there_and_breaks_circles() -> None:
    needs = {"a": ("b",), "b": ("c", "a"), "c": (), "d": ("zz",)}
    assert kernel.loading_order(needs, ("nothing", "a"), ()) == ["c", "b", "a"]
    assert kernel.loading_order(needs, ("d",), ("zz",)) == ["d"]
    with pytest.raises(LocalError, match="d needs zz"):
        kernel.loading_order(needs, ("d",), ())


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/virtio-rng.ko", "virtio_rng"), ("9p.ko.xz", "9p"), ("x.ko.zst", "x"), ("x.ko.txt", None), ("x.c", None)],
)
def test_a_module_has_the_name_of_its_file(path: str, name: str | None) -> None:
    assert kernel.module_name(path) == name


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
@pytest.mark.parametrize("note", [True, False])
def test_of_a_compressed_image_that_pvh_can_enter_the_inner_one_is_taken(pack: object, note: bool) -> None:
    assert callable(pack)
    inner = b"\x7fELF" + (struct.pack("<III", 4, 8, 18) + b"Xen\0" if note else b"")
    payload = pack(inner)
    image = bytearray(1024 + 16) + payload
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    assert kernel.bootable(bytes(image)) == (inner if note else bytes(image))
    assert kernel.bootable(b"\x7fELF") == b"\x7fELF"


def test_a_named_package_gets_an_entry_of_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    cache = Cache(tmp_path / "cache", said.append)
    place = tmp_path / "cache/x86_64/busybox"
    place.mkdir(parents=True)
    (place / "busybox").write_bytes(b"")
    arch = machine.find("x86_64")
    deb = make_kernel(tmp_path / "kernel.deb")
    found, _ = cache.get(arch, deb=deb)
    assert (found.package, found.version, found.image.read_bytes()) == ("linux-image-x", "6.9-1", b"image")
    assert found.modules[-1].name == "ext4.ko"
    assert cache.get(arch, deb=deb)[0] == found
    assert said == ["unpacking kernel.deb"]
    about = json.loads((found.image.parent / "about.json").read_text())
    assert about["modules"][-1] == "ext4"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "ppc64el"}, "is for ppc64el; a guest of x86_64 needs one for amd64"),
        ({"modules": {"virtio_pci": ()}}, "kernel.deb: the kernel has no virtio_blk"),
        ({"modules": {**MODULES, "ext4": ("gone",)}}, "the kernel's module ext4 needs gone"),
    ],
)
def test_a_package_that_makes_no_guest_is_refused_in_one_line(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    deb = make_kernel(tmp_path / "kernel.deb", **options)  # type: ignore[arg-type]
    (tmp_path / "cache/x86_64/busybox").mkdir(parents=True)
    done = run(tmp_path / "cache", "--arch", "x86_64", "--kernel", str(deb), "--exec", "true")
    assert done.returncode == 1
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("boot: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert sorted(path.name for path in (tmp_path / "cache/x86_64").iterdir()) == ["busybox"]
    assert list((tmp_path / "cache").glob("scratch*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "vax"), "powervio: unknown architecture 'vax': expected x86_64 or ppc64le"),
        (("--disk", "/no/such.img"), "powervio: disk /no/such.img: no such file"),
        (("--memory", "lots"), "powervio: memory 'lots': expected a size like 512M or 1G"),
        (("--kernel", "/no/such.deb"), "powervio: /no/such.deb: no such file"),
        (("--kernel", __file__), f"powervio: {__file__} is not a Debian package"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(tmp_path / "cache", *arguments, "--exec", "true")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [said]


def test_without_qemu_its_package_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--arch", "ppc64le", "--exec", "true", environment={"PATH": str(tmp_path)})
    said = "powervio: qemu-system-ppc64 is missing: apt-get install qemu-system-ppc\n"
    assert (done.returncode, done.stderr.decode()) == (1, said)
