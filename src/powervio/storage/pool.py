"""Storage pools: a directory whose files are logical volumes, raw and sparse.

A volume is a regular file directly in the pool's directory; its name is its file's. Names are checked, links are not
followed, and every file is reached by the directory's descriptor: a name cannot lead out of the pool. A volume in use
is locked (`hostfile`), so it is neither deleted nor resized behind the back of whoever serves it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from powervio.errors import LocalError
from powervio.storage import hostfile
from powervio.storage.hostfile import ImageBusy

PREFIX = "pool:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
NAME_WORDS = "a name of letters, digits, '_', '.' and '-', up to 63"
_SECTOR = 512
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would keep an open waiting


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume as it is listed. Sizes are bytes."""

    name: str
    size: int
    allocated: int
    """What it takes of the file system now."""
    in_use: bool


@dataclass(frozen=True, slots=True)
class Space:
    """What a pool's file system has, in bytes."""

    size: int
    free: int


def split(reference: str) -> tuple[str, str]:
    """Pool and volume of `POOL/VOLUME`, with `pool:` before it or not. Raises `LocalError`."""
    pool, slash, volume = reference.removeprefix(PREFIX).partition("/")
    if not slash:
        raise LocalError(f'"{reference}": expected POOL/VOLUME')
    for kind, name in (("pool", pool), ("volume", volume)):
        if not NAME.fullmatch(name):
            raise LocalError(f'"{reference}": "{name}" is no name of a {kind}; expected {NAME_WORDS}')
    return pool, volume


class Pool:
    """One pool; the directory is looked at anew by each method."""

    def __init__(self, name: str, path: str | os.PathLike[str]) -> None:
        self.name = name
        self.path = Path(path)

    def file_of(self, volume: str) -> str:
        """The path of a volume's file, whether it exists or not. Raises `LocalError` for a name that is none."""
        if not NAME.fullmatch(volume):
            raise LocalError(f'"{volume}" is no name of a volume; expected {NAME_WORDS}')
        return str(self.path / volume)

    def check(self, volume: str) -> None:
        """Raise `LocalError` unless the volume exists and is a regular file of its own."""
        with self._directory() as directory:
            os.close(self._open(directory, volume, os.O_RDONLY))

    def space(self) -> Space:
        """Of the file system that the pool is in."""
        with self._directory() as directory:
            status = os.fstatvfs(directory)
        return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def volumes(self) -> list[Volume]:
        """All volumes by name; what is no volume is left out."""
        found: list[Volume] = []
        with self._directory() as directory:
            for name in sorted(os.listdir(directory)):
                if not NAME.fullmatch(name):
                    continue
                try:
                    fd = self._open(directory, name, os.O_RDONLY)
                except LocalError:
                    continue
                try:
                    status = os.fstat(fd)
                    found.append(Volume(name, status.st_size, status.st_blocks * 512, hostfile.is_in_use(fd)))
                finally:
                    os.close(fd)
        return found

    def create(self, volume: str, size: int) -> None:
        """Make a volume of `size` bytes, a multiple of 512, sparse; the pool's directory too if it is not there."""
        self.file_of(volume)
        _check_size(volume, size)
        if not self.path.parent.is_dir():
            raise LocalError(f"pool {self.name}: the folder {self.path.parent} does not exist")
        self.path.mkdir(mode=0o700, exist_ok=True)
        with self._directory() as directory:
            try:
                fd = os.open(volume, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
            except FileExistsError:
                raise LocalError(f"pool {self.name} has a volume {volume} already") from None
            except OSError as error:
                raise self._error(volume, error) from error
            try:
                os.ftruncate(fd, size)
            except OSError as error:
                os.unlink(volume, dir_fd=directory)
                raise self._error(volume, error) from error
            finally:
                os.close(fd)

    def resize(self, volume: str, size: int, *, shrink: bool = False) -> int:
        """Give a volume that nobody uses another size; what it was. Only `shrink` may make it smaller.

        Raises `ImageBusy` when it is in use.
        """
        _check_size(volume, size)
        with self._directory() as directory:
            fd = self._open(directory, volume, os.O_RDWR)
            try:
                hostfile.lock_image(fd, f"{self.name}/{volume}", read_only=False)
                was = os.fstat(fd).st_size
                check_shrink(volume, was, size, shrink=shrink)
                os.ftruncate(fd, size)
            except OSError as error:
                raise self._error(volume, error) from error
            finally:
                os.close(fd)
        return was

    def delete(self, volume: str) -> None:
        """Delete a volume that nobody uses. Raises `ImageBusy` when somebody does."""
        with self._directory() as directory:
            fd = self._open(directory, volume, os.O_RDWR)
            try:
                hostfile.lock_image(fd, f"{self.name}/{volume}", read_only=False)
                os.unlink(volume, dir_fd=directory)
            except OSError as error:
                raise self._error(volume, error) from error
            finally:
                os.close(fd)

    @contextmanager
    def _directory(self) -> Iterator[int]:
        try:
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"pool {self.name}: {self.path}: {error.strerror}") from error
        try:
            yield directory
        finally:
            os.close(directory)

    def _open(self, directory: int, volume: str, flags: int) -> int:
        self.file_of(volume)
        try:
            fd = os.open(volume, _FLAGS | flags, dir_fd=directory)
        except FileNotFoundError:
            raise LocalError(f"pool {self.name} has no volume {volume}") from None
        except OSError as error:
            raise self._error(volume, error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise LocalError(f"pool {self.name}: {volume} is no regular file, and so no volume")
        return fd

    def _error(self, volume: str, error: OSError) -> LocalError:
        return LocalError(f"pool {self.name}: volume {volume}: {error.strerror}")


def check_shrink(volume: str, was: int, size: int, *, shrink: bool) -> None:
    """Raise `LocalError` when a volume would become smaller and nobody said that it may."""
    if size < was and not shrink:
        raise LocalError(
            f"volume {volume} has {was} bytes; {size} would cut off what is behind them: say --shrink if that is meant"
        )


def _check_size(volume: str, size: int) -> None:
    if size <= 0 or size % _SECTOR or size >= 1 << 63:
        raise LocalError(f"volume {volume}: size {size}; expected a positive multiple of {_SECTOR} bytes")


__all__ = ["NAME", "NAME_WORDS", "PREFIX", "ImageBusy", "Pool", "Space", "Volume", "check_shrink", "split"]
