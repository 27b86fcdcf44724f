"""The cache of kernels, busyboxes and modules: an entry is a folder that is there whole or not at all.

CACHE/ARCH/kernel, CACHE/ARCH/busybox     what apt gave, kept until it is refreshed
CACHE/ARCH/deb-DIGEST                     a kernel of a package that the user named
CACHE/ARCH/NAME-DIGEST                    a program of ours for guests
CACHE/ARCH/packages-DIGEST                a set of packages with what they depend on
  .../headers, .../module-DIGEST          in a kernel's entry: its headers, and modules built of some sources
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from powervio.boot import initramfs, kernel, module, packages, programs, software
from powervio.boot.machine import Arch
from powervio.boot.packages import Apt, Choice
from powervio.errors import LocalError

LOCK_LIMIT = 900.0
"""Seconds to wait for another process that fills the cache."""
LOGS_KEPT = 10
BUILD_LOG = "build.log"
"""Beside a module that was built: what make said."""
MODULES_KEPT = 8
"""Builds of different sources that a kernel's entry has, or a program: more than one checkout may use them."""
SETS_KEPT = 8
"""Sets of packages."""
_ABOUT = "about.json"
_IMAGE = "image"
_ARCHIVE = "root.cpio"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache."""

    package: str
    version: str
    image: Path
    modules: tuple[Path, ...]
    """In an order in which they can be loaded."""

    def with_module(self, made: Path) -> Kernel:
        """The same with one more, which comes right after what it needs, and so before the drivers."""
        names = [path.stem for path in self.modules]
        needs = [names.index(name) for name in kernel.depends(made.read_bytes()) if name in names]
        place = max(needs, default=-1) + 1
        return replace(self, modules=(*self.modules[:place], made, *self.modules[place:]))


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

    def get(
        self, arch: Arch, *, deb: Path | None = None, refresh: bool = False, sources: module.Sources | None = None
    ) -> tuple[Kernel, Path]:
        """A kernel and a static busybox; fetched if they are not here. `deb` is a kernel's package.

        With `sources` the kernel's modules have the one that is built of them. Raises `LocalError`.
        """
        name = "kernel" if deb is None else f"deb-{_digest(deb, arch)}"
        with self._locked():
            self._sweep()
            place = self._folder / arch.name
            place.mkdir(exist_ok=True)
            built = None if sources is None else place / name / f"module-{sources.digest()}"
            anew = refresh and deb is None
            to_build = built is not None and (anew or not built.is_dir())
            if to_build:
                module.Compiler.of(arch)  # what is missing is said before anything is fetched
            wanted = {
                "busybox": refresh or not (place / "busybox").is_dir(),
                "kernel": deb is None and (anew or not (place / name).is_dir()),
                "headers": to_build and (anew or not (place / name / "headers").is_dir()),
            }
            if any(wanted.values()) or not (place / name).is_dir():
                with self._scratch() as scratch:
                    if deb is not None and not (place / name).is_dir():
                        self._unpack_kernel(deb, kernel.control_field(deb, "Version"), scratch, place / name)
                    if any(wanted.values()):
                        self._fill(place / name, scratch, arch, {what for what, is_so in wanted.items() if is_so})
            found = self._kernel(place / name)
            if sources is not None and built is not None:
                if not built.is_dir():
                    with self._scratch() as scratch:
                        self._build(sources, arch, scratch, built)
                os.utime(built)
                found = found.with_module(built / f"{sources.name}.ko")
            return found, place / "busybox" / "busybox"

    def program(self, arch: Arch, program: programs.Program) -> Path:
        """A program for guests, which is compiled if it is not here. Raises `LocalError`."""
        place = self._folder / arch.name / f"{program.name}-{program.digest()}"
        with self._locked():
            if not place.is_dir():
                place.parent.mkdir(exist_ok=True)
                self._say(f"compiling {program.name} for {arch.name}")
                with self._scratch() as scratch:
                    made = scratch / "program"
                    made.mkdir()
                    programs.build(program, arch, made / program.name)
                    made.rename(place)
            self._keep_newest(place, f"{program.name}-*", MODULES_KEPT)
        return place / program.name

    def get_packages(self, arch: Arch, names: Sequence[str], *, refresh: bool = False) -> Path:
        """Packages with all that they depend on, as an archive that is unpacked into a guest's root file system.

        They are fetched if this set is not here. Raises `LocalError`.
        """
        software.check(names)
        names = sorted(set(names))
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
        place = self._folder / arch.name / f"packages-{digest}"
        with self._locked():
            self._sweep()
            place.parent.mkdir(exist_ok=True)
            if refresh or not place.is_dir():
                with self._scratch() as scratch:
                    apt = Apt(scratch / "apt", arch.debian, self._say)
                    apt.update()
                    debs = apt.download_with_needs(names)
                    self._say(f"unpacking {', '.join(names)}, and what is needed")
                    made = scratch / "packages"
                    made.mkdir()
                    (made / _ARCHIVE).write_bytes(initramfs.pack(software.nodes(debs)))
                    self._finish(made, place, {"packages": names, "files": [deb.name for deb in debs]})
            self._keep_newest(place, "packages-*", SETS_KEPT)
        return place / _ARCHIVE

    def _keep_newest(self, place: Path, pattern: str, count: int) -> None:
        """Remove the oldest of the entries beside one, which is the newest now."""
        os.utime(place)
        built = sorted(place.parent.glob(pattern), key=lambda path: path.stat().st_mtime)
        for old in built[:-count]:
            shutil.rmtree(old, ignore_errors=True)

    def new_log(self) -> Path:
        """A file for a guest's console; the oldest ones go."""
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[: -LOGS_KEPT + 1]:
            with suppress(OSError):
                old.unlink()
        return logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"

    def _fill(self, place: Path, scratch: Path, arch: Arch, wanted: set[str]) -> None:
        """Fetch what is wanted; `place` is the kernel's entry. All comes in one run of apt-get."""
        apt = Apt(
            scratch / "apt", arch.debian, self._say, tools=packages.of_this_machine() if "headers" in wanted else ""
        )
        apt.update()
        needs: dict[str, list[list[Choice]]] = {}
        if "busybox" in wanted:
            needs["busybox"] = [[choice] for choice in apt.choices("busybox-static")]
        if "kernel" not in wanted and "headers" in wanted:
            about = self._kernel(place)
            try:
                needs["headers"] = [module.headers(apt, Choice(about.package, about.version, 0, ()))]
            except LocalError as error:
                if place.name != "kernel":
                    raise LocalError(f"no headers to build the guest's driver with: {error}") from error
                self._say(f"{error}; so a newer kernel is fetched")
                wanted = {*wanted, "kernel"}
        if "kernel" in wanted:
            needs["kernel"] = _kernels(apt, arch, with_headers="headers" in wanted)
        found = dict(zip(needs, apt.download(*needs.values()), strict=True))
        if debs := found.get("busybox"):
            made = scratch / "busybox"
            made.mkdir()
            (made / "busybox").write_bytes(_busybox(debs[0]))
            self._finish(made, place.with_name("busybox"), {"version": kernel.control_field(debs[0], "Version")})
        if debs := found.get("kernel"):
            version = kernel.control_field(debs[0], "Version")
            self._unpack_kernel(debs[0], version, scratch, place, headers=debs[1:], arch=arch)
        if debs := found.get("headers"):
            self._unpack_headers(debs, arch, scratch / "headers")
            (scratch / "headers").rename(place / "headers")

    def _unpack_headers(self, debs: Sequence[Path], arch: Arch, made: Path) -> None:
        self._say(f"unpacking {' and '.join(deb.name for deb in debs[:1])}, and what it needs")
        module.unpack(debs, arch, made)

    def _build(self, sources: module.Sources, arch: Arch, scratch: Path, place: Path) -> None:
        work, made = scratch / "build", scratch / "module"
        work.mkdir()
        made.mkdir()
        content, said = module.build(sources, arch, place.parent / "headers", work, self._say)
        (made / f"{sources.name}.ko").write_bytes(content)
        (made / BUILD_LOG).write_text(said)
        made.rename(place)
        self._keep_newest(place, "module-*", MODULES_KEPT)

    def _unpack_kernel(
        self,
        deb: Path,
        version: str,
        scratch: Path,
        place: Path,
        *,
        headers: Sequence[Path] = (),
        arch: Arch | None = None,
    ) -> None:
        self._say(f"unpacking {deb.name}")
        contents = kernel.read_package(deb)
        made = scratch / "kernel"
        (made / "modules").mkdir(parents=True)
        (made / _IMAGE).write_bytes(contents.image)
        for name in contents.order:
            (made / "modules" / f"{name}.ko").write_bytes(contents.modules[name])
        if headers and arch is not None:
            self._unpack_headers(headers, arch, made / "headers")
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


def _kernels(apt: Apt, arch: Arch, *, with_headers: bool) -> list[list[Choice]]:
    """The kernels that the lists have, the newest first, each with its headers if those are wanted."""
    found = []
    said = f"{arch.kernel} for {arch.debian} names no kernel"
    for newest in apt.choices(arch.kernel):
        for name in newest.depends:
            for image in apt.choices(name) if name.startswith("linux-image-") else ():
                try:
                    found.append([image, *(module.headers(apt, image) if with_headers else ())])
                except LocalError as error:
                    said = str(error)
    if not found:
        raise LocalError(said)
    return found


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
