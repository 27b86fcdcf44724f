"""`powervio save` and `restore`: client partitions that leave for a file, and come back from one."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import click

from powervio.system import control
from powervio.system.config import show_size
from powervio.system.saved_file import SavedFile, partial_path

LIMIT = 3600.0
"""Seconds; a partition may have a lot of memory."""
_TICK = 0.5

_system = click.option("--system", "name", metavar="NAME", help="The running system, if there are several.")


class _Progress:
    """Shows how long a file has become, on a terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            click.echo("\r\x1b[K", nl=False, err=True)

    def _run(self) -> None:
        while not self._ended.wait(_TICK):
            with suppress(OSError):
                click.echo(f"\r{self._path.stat().st_size >> 20} MiB", nl=False, err=True)


@click.command()
@click.argument("client")
@click.argument("file", type=click.Path(path_type=Path))
@_system
def save(client: str, file: Path, name: str | None) -> None:
    """Let the client partition CLIENT of a running system go on in FILE, and end it there.

    What is in flight ends before, and the disks are flushed; their images stay where they are. `powervio restore` lets
    it go on, in the same system or another one.
    """
    path = Path(os.path.abspath(file))
    running = control.choose(name)
    with _Progress(partial_path(path)):
        saved = control.ask(running, "save", {"client": client, "path": str(path)}, timeout=LIMIT)
    click.echo(f"{client} is saved in {file} ({show_size(saved['size'])})")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Also if somebody wrote to its disks since it was saved.")
@_system
def restore(file: Path, force: bool, name: str | None) -> None:
    """Let the client partition that was saved in FILE go on in a running system.

    The system needs VIO servers with the names that the partition knows, and its images; it may be another one than it
    was saved from. `powervio up SYSTEM.toml --restore FILE` starts a system with it. FILE stays, and is of no use once
    the partition has written to its disks.
    """
    path = Path(os.path.abspath(file))
    with SavedFile(path):  # what is wrong with the file is told here
        pass
    running = control.choose(name)
    restored = control.ask(running, "restore", {"path": str(path), "force": force}, timeout=LIMIT)
    click.echo(f"{restored['client']} goes on")
    for socket in restored["disks"]:
        if socket is not None:
            click.echo(f"    nbd+unix:///?socket={socket}")
