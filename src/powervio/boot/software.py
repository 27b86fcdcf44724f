"""Packages for a guest, unpacked as part of its root file system, without what no program needs to run.

The guest's root has all programs and libraries below /usr, with links /bin, /lib64 and so on, whatever way a package
still has it. Installation scripts of packages are not run: there are no users, alternatives or services of theirs.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from powervio.boot import kernel
from powervio.boot.initramfs import Node, file, folder, link
from powervio.errors import LocalError

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32")
"""Folders of the root that are links to those of /usr."""
ALIASES = "etc/profile.packages"
"""What the guest's shell reads: busybox would take its own applets before programs of the same names."""
_UNUSED = frozenset(
    ("bash-completion", "bug", "doc", "doc-base", "info", "lintian", "locale", "man", "pixmaps", "zsh")
)  # fmt: skip
"""Of /usr/share."""
_SHELL = "sh"


def check(names: Iterable[str]) -> None:
    """See that these can be names of packages (Debian policy 5.6.1). Raises `LocalError`."""
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            raise LocalError(f"{name!r} is no name of a package")


def place_of(name: str) -> str | None:
    """Where a member of a package goes, without a leading slash; None if it is left out."""
    path = PurePosixPath("/", name)
    parts = path.parts[1:]
    if not parts or ".." in parts:
        return None
    if parts[0] in MERGED:
        parts = ("usr", *parts)
    match parts:
        case ("usr", "share", part, *_) if part in _UNUSED:
            return None
        case ("usr", "lib", "locale", *_) | ("usr", "lib", _, "gconv", *_):  # of other languages and characters
            return None
    return "/".join(parts)


def nodes(debs: Sequence[Path]) -> list[Node]:
    """What these packages have in a root file system. Raises `LocalError`."""
    found: dict[str, Node] = {}
    for deb in debs:
        with kernel.opened(deb) as members:
            for member, read in members:
                place = place_of(member.name)
                if place is None:
                    continue
                mode = stat.S_IMODE(member.mode)
                if member.isdir():
                    made = folder(place, mode)
                elif member.issym():
                    made = link(place, member.linkname)
                elif member.islnk():
                    made = link(place, f"/{place_of(member.linkname)}")
                elif member.isfile():
                    made = file(place, read(), mode)
                else:
                    continue
                if not _is_link_of_root(member.name, made):
                    _parents(place, found)
                    found.setdefault(place, made)
    programs = [path for path, node in found.items() if _is_program(path, node)]
    return [*found.values(), *_parents(ALIASES, found), file(ALIASES, _aliases(programs))]


def _is_link_of_root(name: str, made: Node) -> bool:
    return stat.S_ISLNK(made.mode) and PurePosixPath("/", name).parts[1:] in {(part,) for part in MERGED}


def _parents(place: str, found: dict[str, Node]) -> list[Node]:
    """Make the folders of a place that are not there yet; those."""
    made = [str(path) for path in reversed(PurePosixPath(place).parents[:-1]) if str(path) not in found]
    found |= {path: folder(path) for path in made}
    return [found[path] for path in made]


def _is_program(path: str, node: Node) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == "usr" and parts[1] in ("bin", "sbin") and not stat.S_ISDIR(node.mode)


def _aliases(programs: Iterable[str]) -> bytes:
    names = {PurePosixPath(path).name: path for path in programs}
    lines = [
        f"alias {name}=/{path}\n"
        for name, path in sorted(names.items())
        if name != _SHELL and re.fullmatch(r"\w[\w.+-]*", name)
    ]
    return "".join(lines).encode()
