"""Storage pools: volumes, and names and files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.storage.image import open_image
from powervio.storage.pool import ImageBusy, Pool, split

MIB = 1 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool("data", tmp_path / "pool")


def test_volume_is_sparse_listed_resized_and_deleted(pool: Pool) -> None:
    pool.create("a", 64 * MIB)
    pool.create("b.1", 512)
    assert [(one.name, one.size, one.allocated, one.in_use) for one in pool.volumes()] == [
        ("a", 64 * MIB, 0, False),
        ("b.1", 512, 0, False),
    ]
    assert pool.resize("a", 128 * MIB) == 64 * MIB
    with pytest.raises(LocalError, match="say --shrink"):
        pool.resize("a", MIB)
    pool.resize("a", MIB, shrink=True)
    pool.delete("b.1")
    assert [(one.name, one.size) for one in pool.volumes()] == [("a", MIB)]
    assert 0 < pool.space().free <= pool.space().size
    assert (pool.path.stat().st_mode & 0o777, (pool.path / "a").stat().st_mode & 0o777) == (0o700, 0o600)


def test_volume_in_use_is_neither_deleted_nor_resized(pool: Pool) -> None:
    pool.create("a", MIB)
    with open_image(pool.file_of("a"), read_only=True):
        assert pool.volumes()[0].in_use
        for change in (lambda: pool.delete("a"), lambda: pool.resize("a", 2 * MIB)):
            with pytest.raises(ImageBusy, match="is in use by this process"):
                change()
    pool.delete("a")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "-x", "a\0", "a\n", "x" * 64])
def test_name_that_is_none_is_refused_everywhere(pool: Pool, name: str) -> None:
    pool.create("a", MIB)
    for call in (
        lambda: pool.create(name, MIB),
        lambda: pool.resize(name, MIB),
        lambda: pool.delete(name),
        lambda: pool.check(name),
        lambda: split(f"data/{name}"),
    ):
        with pytest.raises(LocalError, match="expected"):
            call()
    assert os.listdir(pool.path) == ["a"]


def test_what_is_no_regular_file_is_no_volume_and_is_left_alone(pool: Pool, tmp_path: Path) -> None:
    pool.create("a", MIB)
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(512))
    (pool.path / "link").symlink_to(outside)
    (pool.path / "folder").mkdir()
    os.mkfifo(pool.path / "fifo")
    assert [one.name for one in pool.volumes()] == ["a"]
    for name in ("link", "folder", "fifo"):
        for call in (lambda n=name: pool.check(n), lambda n=name: pool.delete(n), lambda n=name: pool.resize(n, 512)):
            with pytest.raises(LocalError):
                call()
        with pytest.raises(LocalError, match="already"):
            pool.create(name, MIB)
    assert outside.stat().st_size == 512


@pytest.mark.parametrize("size", [0, -512, 100, 1 << 63])
def test_size_that_is_none_is_refused_and_leaves_nothing(pool: Pool, size: int) -> None:
    with pytest.raises(LocalError, match="size"):
        pool.create("a", size)
    pool.create("b", 512)
    with pytest.raises(LocalError, match="size"):
        pool.resize("b", size, shrink=True)


def test_missing_things_are_named(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"pool data: .*pool: No such file"):
        pool.volumes()
    pool.create("a", 512)
    with pytest.raises(LocalError, match="has no volume b"):
        pool.delete("b")
    with pytest.raises(LocalError, match="has a volume a already"):
        pool.create("a", 512)
    with pytest.raises(LocalError, match="does not exist"):
        Pool("x", tmp_path / "no" / "where").create("a", 512)
