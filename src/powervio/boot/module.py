"""The guest's driver, `linux/virtio_vio`: built for a kernel of Debian against headers that are installed nowhere.

Headers are three packages: one for the kernel's flavour, one that is common to all, and linux-kbuild, whose programs
run here. Of them is kept what such a module can need.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from powervio.boot import commands, kernel
from powervio.boot.machine import Arch
from powervio.boot.packages import Apt, Choice
from powervio.errors import LocalError

NAME = "virtio_vio"
BUILD_LIMIT = 180.0
"""Seconds for make."""
_SOURCES = ("*.c", "*.h", "Makefile", "Kbuild")
_BUILT_WITH = b"W=1"
"""What else makes one build another."""
_UNUSED = ("drm", "dt-bindings", "media", "sound")
"""Folders of include/ that no driver of ours needs: a quarter of it all."""
_COMPLAINT = re.compile(r"error|cannot|not found|missing|No rule", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sources:
    """A module's C sources."""

    folder: Path
    name: str = NAME
    """Of the module: what the Makefile makes is this name with ".ko"."""

    def files(self) -> list[Path]:
        """All of them, in the order of their names. Raises `LocalError` when there are none."""
        found = {
            path for pattern in _SOURCES for path in self.folder.rglob(pattern) if not path.name.endswith(".mod.c")
        }
        if not found:
            raise LocalError(f"{self.folder}: there are no sources of the module {self.name}")
        return sorted(found)

    def digest(self) -> str:
        """What a built module is known by."""
        digest = hashlib.sha256(_BUILT_WITH)
        for path in self.files():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(self.folder)}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]


def sources() -> Sources:
    """The sources that came with this package."""
    return Sources(Path(__file__).with_name(NAME))


@dataclass(frozen=True, slots=True)
class Compiler:
    """Programs that make modules for an architecture."""

    prefix: str
    """"" where guests are as this machine is."""
    package: str

    @classmethod
    def of(cls, arch: Arch, what: str = "", tools: Sequence[str] = ("make",)) -> Compiler:
        """Those for guests of an architecture, and tools of this machine. Raises `LocalError` that names all that is
        missing; `what` is what cannot be built then, if it is not the driver."""
        if platform.machine() == arch.name:
            made = cls("", "gcc")
        else:
            made = cls(f"{arch.gnu}-", f"gcc-{arch.gnu.replace('_', '-')}")
        missing = {f"{made.prefix}gcc": made.package} | {tool: tool for tool in tools}
        missing = {program: package for program, package in missing.items() if shutil.which(program) is None}
        if missing:
            hint = "" if what else " (or --transport vhost-user, which needs no driver)"
            raise LocalError(
                f"{what or 'the driver'} for guests of {arch.name} cannot be built: {' and '.join(missing)} missing:"
                f" apt-get install {' '.join(missing.values())}{hint}"
            )
        return made

    def choose(self, wanted: str) -> str:
        """The compiler that the kernel was made with if it is here, or the one that is."""
        return next(name for name in (f"{self.prefix}{wanted}", f"{self.prefix}gcc") if shutil.which(name))


def check_options(modules: Sequence[Path], options: Sequence[str]) -> None:
    """Whether the driver among these modules has these parameters, NAME=VALUE. Raises `LocalError` if not: the kernel
    would take no notice of a name that it does not know."""
    if not options:
        return
    driver = next((path for path in modules if path.stem == NAME), None)
    if driver is None:
        raise LocalError(f"{options[0]}: options are for the driver {NAME}, which this transport does not need")
    known = kernel.parameters(driver.read_bytes())
    for option in options:
        name, is_given, value = option.partition("=")
        if not is_given or name not in known or not re.fullmatch(r"[\w,.+-]+", value):
            raise LocalError(f"{option}: expected NAME=VALUE, with a name among {', '.join(sorted(known))}")


def headers(apt: Apt, image: Choice) -> list[Choice]:
    """The packages of a kernel's headers. Raises `LocalError` if the lists have none of its very version."""
    name = image.package.replace("linux-image-", "linux-headers-", 1).removesuffix("-unsigned")
    flavour = _of_version(apt.choices(name), image.version)
    if flavour is None:
        raise LocalError(f"the package {name} is not to be had in version {image.version}, which is the kernel's")
    found = [flavour]
    for other in flavour.depends:
        if other.startswith("linux-headers-"):
            found.append(_of_version(apt.choices(other), image.version) or apt.choices(other)[0])
        elif other.startswith("linux-kbuild-"):
            found.append(_of_version(apt.tools(other), image.version) or apt.tools(other)[0])
    return found


def _of_version(choices: Sequence[Choice], version: str) -> Choice | None:
    return next((choice for choice in choices if choice.version == version), None)


def unpack(debs: Sequence[Path], arch: Arch, folder: Path) -> None:
    """Put what is needed of packages of headers into a folder that may be moved. Raises `LocalError`."""
    for deb in debs:
        with kernel.opened(deb) as members:
            for member, read in members:
                path = PurePosixPath(member.name)
                place = folder / path
                if ".." in path.parts or not _is_needed(path, arch):
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                if member.issym() and not member.linkname.startswith("/"):
                    place.symlink_to(member.linkname)
                elif member.isfile():
                    content = read()
                    if path.name == "Makefile":
                        # it names its other half by an absolute path
                        content = content.replace(
                            b"include /usr/src/", b"include $(dir $(lastword $(MAKEFILE_LIST)))../"
                        )
                    place.write_bytes(content)
                    place.chmod(0o755 if member.mode & 0o100 else 0o644)


def _is_needed(path: PurePosixPath, arch: Arch) -> bool:
    match path.parts:
        case ("usr", "src", name, "include", part, *_) if name.startswith("linux-headers-"):
            return part not in _UNUSED
        case ("usr", "src", name, "arch", part, *_) if name.startswith("linux-headers-"):
            return part == arch.linux
        case ("usr", "src", name, part, *_) if name.startswith("linux-headers-"):
            return not part.startswith(("changelog", "copyright"))
        case ("usr", "lib", name, _, *_):
            return name.startswith("linux-kbuild-")
    return False


def build(
    made_of: Sources,
    arch: Arch,
    tree: Path,
    scratch: Path,
    say: Callable[[str], None],
) -> tuple[bytes, str]:
    """A module, without its debug information, and what make said, with the compiler's additional warnings (W=1).

    `tree` is what `unpack` made; the sources are copied into the folder `scratch`. Raises `LocalError`.
    """
    compiler = Compiler.of(arch)
    flavours = [path.parent for path in tree.glob("usr/src/linux-headers-*/.kernelvariables")]
    if len(flavours) != 1:
        raise LocalError(f"{tree}: these are no headers of a kernel")
    wanted = re.search(r"\bgcc-\d+", (flavours[0] / ".kernelvariables").read_text())
    cc = compiler.choose(wanted[0] if wanted else "gcc")
    for path in made_of.files():
        place = scratch / path.relative_to(made_of.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    say(f"building {made_of.name} for {flavours[0].name.removeprefix('linux-headers-')} with {cc}")
    command = ["make", "-C", str(flavours[0]), f"-j{os.cpu_count() or 1}", f"M={scratch}"]
    # BTF would need the kernel's own debug information
    command += [f"CROSS_COMPILE={compiler.prefix}", f"CC={cc}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    said = _run([*command, _BUILT_WITH.decode(), "modules"], made_of, scratch)
    module = scratch / f"{made_of.name}.ko"
    if not module.is_file():
        raise LocalError(f"{made_of.folder}: its Makefile makes no {module.name}")
    _run([f"{compiler.prefix}strip", "--strip-debug", str(module)], made_of, scratch)
    return module.read_bytes(), said


def _run(command: Sequence[str], made_of: Sources, scratch: Path) -> str:
    """What a command says, of the sources where the user has them. Raises `LocalError` when it fails or takes long."""
    theirs = ("PATH", "HOME", "TMPDIR")  # variables of the user's own builds would change this one
    environment = {key: os.environ[key] for key in theirs if key in os.environ}
    late = f"{command[0]} to build {made_of.name}"
    done = commands.run(command, environment, limit=BUILD_LIMIT, late=late, together=True)
    said = done.stdout.replace(str(scratch), str(made_of.folder))
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        complaint = next((line for line in lines if _COMPLAINT.search(line)), lines[-1] if lines else "it said nothing")
        if "libelf.so" in complaint:
            complaint += " (apt-get install libelf1)"
        raise LocalError(f"the module {made_of.name} cannot be built: {complaint}")
    return said
