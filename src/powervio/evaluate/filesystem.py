"""ext4 images made and checked by e2fsprogs, which know nothing of powervio: that is what makes them good witnesses."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import powervio
from powervio.errors import LocalError

PACKAGE = "e2fsprogs"
"""The Debian package of both programs."""

_MIB = 1 << 20
_LIMIT = 120.0
"""Seconds that a program may take."""
_MAGIC_AT = 1024 + 56
"""Where the superblock of ext2, ext3 and ext4 has its magic number, in bytes."""
_MAGIC = b"\x53\xef"
_LARGEST = _MIB
"""Bytes of a file that is worth copying: larger ones are somebody's data."""


@dataclass(frozen=True, slots=True)
class FsckResult:
    """What `e2fsck -fn` found."""

    clean: bool
    output: str


def project_files() -> tuple[Path, list[Path]]:
    """A folder and the project's own files in it: what git knows of a checkout, else the package's sources.

    Whatever else lies there (images, downloads) is the user's.
    """
    package = Path(powervio.__file__).resolve().parent
    root = package.parents[1]
    files = _known_to_git(root) if (root / ".git").exists() and (root / "src" / "powervio").is_dir() else []
    if not files:
        root, files = package, list(_walk(package))
    return root, sorted(path for path in files if _is_worth_copying(path))


def _known_to_git(root: Path) -> list[Path]:
    """Nothing if there is no git, or it does not trust the folder."""
    git = shutil.which("git")
    result = _run([git, "-C", str(root), "ls-files", "-z"]) if git else None
    if result is None or result.returncode:
        return []
    return [root / name for name in result.stdout.split("\0") if name]


def _is_worth_copying(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False  # deleted, and git does not know it yet
    return stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST


def _walk(folder: Path) -> Iterator[Path]:
    """Files a person wrote: no cache or compiler output."""
    for entry in os.scandir(folder):
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            if not name.startswith((".", "__pycache__")):
                yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            generated = name.endswith(".c") and Path(entry.path).with_suffix(".py").exists()
            if not generated and not name.endswith((".so", ".pyc")):
                yield Path(entry.path)


def make_image(mke2fs: str, image: Path, *, at_least: int = 32 * _MIB) -> tuple[int, int]:
    """Make an ext4 image with the project's files; returns `(files, their bytes)`. Raises `LocalError`.

    `at_least` is the least size of the image in bytes.
    """
    root, files = project_files()
    tree = image.with_suffix(".files")
    count = total = 0
    for path in files:
        target = tree / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy(path, target)
        except FileNotFoundError:
            continue  # somebody works in the tree while the demo runs
        except OSError as error:
            raise LocalError(f"cannot copy {path} into the demo's file system: {error.strerror}") from error
        count += 1
        total += target.stat().st_size
    # Room for blocks that are not full, inodes and the journal.
    size = max(at_least, -(-(2 * total + 4096 * count + 8 * _MIB) // _MIB) * _MIB)
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-L", "powervio", "-d", str(tree), str(image), f"{size // 1024}k"]
    result = _run(command)
    if result.returncode:
        raise LocalError(f"mke2fs failed with status {result.returncode}: {_last_line(result.stderr)}")
    shutil.rmtree(tree)
    return count, total


def holds_ext(image: Path) -> bool:
    """Whether an image begins with an ext2, ext3 or ext4 file system."""
    with open(image, "rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(2) == _MAGIC


def check_image(e2fsck: str, image: Path) -> FsckResult:
    """`e2fsck -fn`: a full check that changes nothing."""
    result = _run([e2fsck, "-fn", str(image)])
    return FsckResult(result.returncode == 0, (result.stdout + result.stderr).strip())


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    name = Path(command[0]).name
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_LIMIT, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LocalError(f"{name} did not end within {_LIMIT:.0f} s") from None
    except OSError as error:
        raise LocalError(f"{name} cannot be run: {error.strerror}") from error


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it did not say why"
