"""Options that several benches have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from powervio.boot import machine

_Command = TypeVar("_Command", bound=Callable[..., Any])


def folder(what: str) -> Callable[[_Command], _Command]:
    """`--folder`, in which `what` is made."""
    return click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
        help=f"Where {what} made. [default: /dev/shm, else the temporary folder]",
    )


def arch(command: _Command) -> _Command:
    """`--arch` of a guest."""
    return click.option(
        "--arch",
        type=click.Choice(list(machine.ARCHES)),
        help="The guest's architecture; this machine's if it is one of them, or x86_64.",
    )(command)


def kernels(command: _Command) -> _Command:
    """`--cache`, the folder of guests' kernels."""
    return click.option(
        "--cache",
        "kernels",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Where kernels are kept, as for `powervio boot`.",
    )(command)
