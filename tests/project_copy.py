"""Copies of the project, to be built and tested elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def is_made(folder: str, names: list[str]) -> list[str]:
    """What compiling and running has left, as `shutil.copytree` asks for it."""
    made = [name for name in names if name.endswith((".so", ".o", ".ko")) or name in ("__pycache__", ".hypothesis")]
    return made + [name for name in names if name.endswith(".c") and f"{name[:-2]}.py" in names]


def copy_project(to: Path, *names: str) -> None:
    """Copy files and folders of the project, named from its root, to a folder, without what was made of them."""
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, to / name, symlinks=True, ignore=is_made)
        else:
            shutil.copy2(PROJECT / name, to / name)
