"""The cache of kernels and busyboxes: an entry is a folder that is there whole or not at all.

CACHE/ARCH/kernel, CACHE/ARCH/busybox     what apt gave, kept until it is refreshed
CACHE/ARCH/deb-DIGEST                     a kernel of a package that the user named
CACHE/scratch-...                         being made; CACHE/logs has consoles of guests that failed
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from powervio.boot import kernel, packages
from powervio.boot.machine import Arch
from powervio.errors import LocalError

LOCK_LIMIT = 900.0
"""Seconds to wait for another process that fills the cache."""
LOGS_KEPT = 10
_ABOUT = "about.json"
_IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache."""

    package: str
    version: str
    image: Path
    modules: tuple[Path, ...]
    """In an order in which they can be loaded."""


def default_folder() -> Path:
    """The user's cache folder, by the XDG base directory specification."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError as error:
        raise LocalError(f"no cache folder: {error}; --cache FOLDER names one") from error
    return base / "powervio" / "boot"


class Cache:
    """A cache folder, which is made when it is not there. What it does it tells `say`."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder.absolute()
        self._say = say
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "lock").touch()
        except OSError as error:
            raise LocalError(f"cache {folder}: {error.strerror}") from error

    def get(self, arch: Arch, *, deb: Path | None = None, refresh: bool = False) -> tuple[Kernel, Path]:
        """A kernel and a static busybox; fetched if they are not here. `deb` is a kernel's package.

        Raises `LocalError`.
        """
        name = "kernel" if deb is None else f"deb-{_digest(deb, arch)}"
        with self._locked():
            self._sweep()
            place = self._folder / arch.name
            place.mkdir(exist_ok=True)
            fetched = [entry for entry in ("kernel", "busybox") if deb is None or entry != "kernel"]
            wanted = [entry for entry in fetched if refresh or not (place / entry).is_dir()]
            if wanted or not (place / name).is_dir():
                with self._scratch() as scratch:
                    self._fill(place, scratch, arch, wanted)
                    if deb is not None and not (place / name).is_dir():
                        self._unpack_kernel(deb, kernel.control_field(deb, "Version"), scratch, place / name)
            return self._kernel(place / name), place / "busybox" / "busybox"

    def new_log(self) -> Path:
        """A file for a guest's console; the oldest ones go."""
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[: -LOGS_KEPT + 1]:
            with suppress(OSError):
                old.unlink()
        return logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"

    def _fill(self, place: Path, scratch: Path, arch: Arch, wanted: list[str]) -> None:
        if not wanted:
            return
        apt = packages.Apt(scratch / "apt", arch.debian, self._say)
        apt.update()
        if "busybox" in wanted:
            choice, deb = apt.download(apt.choices("busybox-static"))
            made = scratch / "busybox"
            made.mkdir()
            (made / "busybox").write_bytes(_busybox(deb))
            self._finish(made, place / "busybox", {"package": choice.package, "version": choice.version})
        if "kernel" in wanted:
            choices = [
                image
                for newest in apt.choices(arch.kernel)
                for name in newest.depends
                if name.startswith("linux-image-")
                for image in apt.choices(name)
            ]
            if not choices:
                raise LocalError(f"{arch.kernel} for {arch.debian} names no kernel")
            choice, deb = apt.download(choices)
            self._unpack_kernel(deb, choice.version, scratch, place / "kernel")

    def _unpack_kernel(self, deb: Path, version: str, scratch: Path, place: Path) -> None:
        self._say(f"unpacking {deb.name}")
        contents = kernel.read_package(deb)
        made = scratch / "kernel"
        (made / "modules").mkdir(parents=True)
        (made / _IMAGE).write_bytes(contents.image)
        for name in contents.order:
            (made / "modules" / f"{name}.ko").write_bytes(contents.modules[name])
        package = kernel.control_field(deb, "Package")
        about = {"package": package, "version": version, "modules": contents.order}
        self._finish(made, place, about)

    def _finish(self, made: Path, place: Path, about: Mapping[str, object]) -> None:
        """Put what was made in its place, instead of what may be there."""
        (made / _ABOUT).write_text(json.dumps(about, indent=2))
        if place.is_dir():
            place.rename(made.with_name(f"old-{place.name}"))
        made.rename(place)

    def _kernel(self, place: Path) -> Kernel:
        try:
            about = json.loads((place / _ABOUT).read_text())
            modules = tuple(place / "modules" / f"{name}.ko" for name in about["modules"])
            return Kernel(about["package"], about["version"], place / _IMAGE, modules)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(f"cache {place} is damaged ({error}); remove it") from error

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=self._folder))
        try:
            yield folder
        except OSError as error:
            raise LocalError(f"cache {self._folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed predecessors left half made; the lock is held."""
        for folder in self._folder.glob("scratch-*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("rb") as lock:
            deadline = time.monotonic() + LOCK_LIMIT
            told = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LocalError(
                            f"waited {LOCK_LIMIT:.0f} s for another process that fills the cache {self._folder}"
                        ) from None
                if not told:
                    self._say(f"waiting for another process that fills the cache {self._folder}")
                    told = True
                time.sleep(0.1)
            yield


def _digest(deb: Path, arch: Arch) -> str:
    """What a kernel's package is known by; it has to be one for this architecture."""
    its = kernel.control_field(deb, "Architecture")
    if its != arch.debian:
        raise LocalError(f"{deb} is for {its}; a guest of {arch.name} needs one for {arch.debian}")
    with deb.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _busybox(deb: Path) -> bytes:
    found = kernel.files(deb, lambda path: "busybox" if path.parts[-2:] == ("bin", "busybox") else None)
    if "busybox" not in found:
        raise LocalError(f"{deb.name} has no bin/busybox")
    return found["busybox"]
