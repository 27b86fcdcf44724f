"""The import rules of docs/architecture.md: which room may know which.

import-linter sees neither `cython.cimports.powervio...` in a compiled module nor a `cimport` in a `.pxd`. So it is run
on a copy of the package in which the first reads `powervio...`, and each `x.pxd` becomes a module `x_pxd` that imports
what the declaration file cimports.

For editors: a new room is one row in `KNOWS`. A room is known with everything below it in the folder. The rule is about
direct imports: `attach` may use a driver, and so need not know what that driver knows.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from importlinter.cli import lint_imports

FLOOR = {"errors", "_compiled"}
"""Modules that every room may know, and that know no room."""

KNOWS: dict[str, set[str]] = {
    "memory": set(),
    "papr": {"memory"},
    "virtio": {"memory"},
    "phyp": {"papr", "memory"},
    "vio": {"memory", "papr"},
    "storage": {"memory"},
    "network": {"memory"},
    "files": {"memory"},
    "devices": {"virtio", "memory", "storage", "network", "files"},
    "drivers": {"virtio", "memory", "files"},  # the codecs of files are the contract of both ends
    "transport.crq": {"papr", "virtio", "memory", "vio"},
    "transport.vhost_user": {"virtio", "memory"},
    "native": {"papr", "phyp", "storage", "network", "vio", "memory"},
    "gateway": {"papr", "phyp", "memory"},
    "attach": {"drivers", "storage", "network", "files", "virtio", "memory"},
    "boot": {"gateway"},
}
KNOWS["system"] = set(KNOWS)
KNOWS |= {room: KNOWS["system"] | {"system"} for room in ("trace", "evaluate", "bench")}
KNOWS["evaluate"] = KNOWS["evaluate"] | {"bench"}
KNOWS["cli"] = {"system", "boot", "trace", "evaluate", "bench"}
KNOWS["__main__"] = {"cli"}
KNOWS["testing"] = set(KNOWS) - {"__main__"}

_CIMPORT = re.compile(r"^\s*(?:from\s+(?P<base>\S+)\s+cimport\s+(?P<names>.+)|cimport\s+(?P<modules>.+))", re.MULTILINE)


def main() -> int:
    """Check src/powervio of the current directory; returns the exit status."""
    package = Path("src/powervio")
    problems = [*unknown_modules(package), *folders_without_init(package)]
    for problem in problems:
        print(f"layers: {problem}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="powervio-layers-") as folder:
        copy = Path(folder)
        copy_for_linter(package, copy / "powervio")
        config = copy / "contracts.ini"
        config.write_text(contracts(copy / "powervio"))
        sys.path.insert(0, folder)
        status = lint_imports(config_filename=str(config), no_cache=True)
    return 1 if problems or status else 0


def unknown_modules(package: Path) -> list[str]:
    """Say which modules belong to no room."""
    known = set(KNOWS) | FLOOR | {"__init__"} | {room.split(".")[0] for room in KNOWS}
    found = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/*.py")}
    inner = {room.split(".")[0] for room in KNOWS if "." in room}
    known_inner = {room for room in KNOWS if "." in room} | {f"{room}.__init__" for room in inner}
    found_inner = {
        f"{room}.{path.stem if path.is_file() else path.name}"
        for room in inner
        for path in (package / room).glob("*")
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    strangers = sorted(found - known) + sorted(found_inner - known_inner)
    return [f"powervio.{name} is no room: add a row to KNOWS in {__file__}" for name in strangers]


def folders_without_init(package: Path) -> list[str]:
    """Say which folders the linter would overlook."""
    folders = {path.parent for path in package.rglob("*.py")}
    return [f"{folder} has no __init__.py" for folder in sorted(folders) if not (folder / "__init__.py").exists()]


def copy_for_linter(package: Path, target: Path) -> None:
    """Copy the package with every cimport as an ordinary import."""
    shutil.copytree(package, target, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    for path in target.rglob("*.py"):
        path.write_text(path.read_text().replace("cython.cimports.powervio", "powervio"))
    for path in target.rglob("*.pxd"):
        text = path.read_text().replace("\\\n", " ")
        text = re.sub(r"\(([^()]*)\)", lambda group: group[1].replace("\n", " "), text)
        lines = [as_imports(match) for match in _CIMPORT.finditer(text)]
        path.with_name(f"{path.stem}_pxd.py").write_text("".join(lines))


def as_imports(cimport: re.Match[str]) -> str:
    """One cimport statement as import statements."""
    if cimport["base"]:
        return f"from {cimport['base']} import {cimport['names'].split('#')[0].strip(' ,')}\n"
    return f"import {cimport['modules'].split('#')[0].strip()}\n"


def contracts(package: Path) -> str:
    """import-linter's configuration: one contract a room that exists, forbidding all it may not know."""

    def exists(room: str) -> bool:
        path = package.joinpath(*room.split("."))
        return path.with_suffix(".py").exists() or (path / "__init__.py").exists()

    rooms = {room for room in KNOWS if exists(room)}
    lines = ["[importlinter]", "root_package = powervio"]
    for room in sorted(rooms | {name for name in FLOOR if exists(name)}):
        forbidden = sorted(rooms - KNOWS.get(room, set()) - {room})
        if not forbidden:
            continue
        lines += [f"[importlinter:contract:{room}]", f"name = {room} knows {words(KNOWS.get(room, set()))}"]
        lines += ["type = forbidden", "allow_indirect_imports = True", f"source_modules = powervio.{room}"]
        lines += ["forbidden_modules =", *(f"    powervio.{name}" for name in forbidden)]
    return "\n".join(lines) + "\n"


def words(rooms: set[str]) -> str:
    """The rooms for a reader."""
    return ", ".join(sorted(rooms)) if rooms else "nothing"


if __name__ == "__main__":
    sys.exit(main())
