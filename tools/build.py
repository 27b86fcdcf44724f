"""Compile the modules of pyproject.toml's `ext-modules` in place; called by ./run when a source has changed.

All or nothing: when one of them cannot be compiled, every extension module is removed, so that no stale or half set
wins over the sources. Exits 0 when all are compiled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

SOURCES = Path("src")
STAMPS = Path("build/stamps")
LOG = Path("build/compile.log")
_CIMPORT = re.compile(
    r"cython\.cimports\.(?P<python>powervio[\w.]*)|from\s+(?P<base>powervio[\w.]*)\s+cimport|cimport\s+(?P<module>powervio[\w.]*)"
)
COMPILE = "from setuptools import setup; setup()"


def main() -> int:
    """Build in the current directory, which is the repository's."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    Path(sys.prefix, "python-h").write_text(f"{header}\n")  # ./run looks whether it has come or gone
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    for there, package in ((shutil.which(compiler), f"gcc (`{compiler}`) and libc6-dev"), (header.exists(), header)):
        if not there:
            print(f"run: not compiled, for this is missing: {package}", file=sys.stderr)
            remove({})
            return 1

    extensions = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    wanted = {ext["name"]: fingerprint(ext) for ext in extensions}
    remove(wanted)
    print("run: compiling the hot path", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, "--quiet", "build_ext", "--inplace", "--parallel"]
    result = subprocess.run([*command, str(os.cpu_count() or 1)], capture_output=True, text=True, check=False)
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text(result.stdout + result.stderr)
    missing = [name for name in wanted if not list(extension_files(name))]
    if result.returncode or missing:
        print(result.stdout + result.stderr, file=sys.stderr)
        print(f"run: could not compile {', '.join(missing)}; the text above is in {LOG}", file=sys.stderr)
        remove({})
        return 1
    STAMPS.mkdir(parents=True, exist_ok=True)
    for name, digest in wanted.items():
        (STAMPS / name).write_text(digest)
    return 0


def fingerprint(extension: dict[str, Any]) -> str:
    """A hash of one module's source, of how it is built, and of every declaration and header that it may include."""
    source = Path(extension["sources"][0])
    digest = hashlib.sha256(f"{sys.version}\0{version('cython')}\0{version('setuptools')}\0{extension}".encode())
    for path in (source, Path(__file__), *declarations(source), *sorted(SOURCES.rglob("*.h"))):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def declarations(source: Path) -> list[Path]:
    """The `.pxd` files that a module is compiled with: its own, those that it cimports, and those that they cimport."""
    found: set[Path] = set()
    wanted = [source, source.with_suffix(".pxd")]
    while wanted:
        path = wanted.pop()
        if path in found or not path.exists():
            continue
        if path.suffix == ".pxd":
            found.add(path)
        for match in _CIMPORT.finditer(path.read_text()):
            module = SOURCES.joinpath(*(match["python"] or match["base"] or match["module"]).split("."))
            # `from package cimport module` names the package
            wanted += [module.with_suffix(".pxd"), *module.glob("*.pxd")]
    return sorted(found)


def extension_files(name: str) -> list[Path]:
    """The compiled files of one module, for whatever version of Python."""
    stem = SOURCES.joinpath(*name.split("."))
    return list(stem.parent.glob(f"{stem.name}.*.so"))


def remove(wanted: dict[str, str]) -> None:
    """Remove every extension module, and its C source, whose fingerprint is not the wanted one."""
    fresh = {
        path
        for name, digest in wanted.items()
        if (stamp := STAMPS / name).exists() and stamp.read_text() == digest
        for path in extension_files(name)
    }
    for library in SOURCES.rglob("*.so"):
        if library not in fresh:
            library.unlink()
            library.with_name(library.name.split(".")[0] + ".c").unlink(missing_ok=True)
    if not wanted:
        shutil.rmtree(STAMPS, ignore_errors=True)
    # setuptools keeps a second copy, which it would put back by its time stamp
    for folder in Path("build").glob("lib.*"):
        for copy in folder.rglob("*.so"):
            if SOURCES / copy.relative_to(folder) not in fresh:
                copy.unlink()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        remove({})
        print("run: interrupted; the hot path is not compiled", file=sys.stderr)
        sys.exit(130)
