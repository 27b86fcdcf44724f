"""`powervio attach`, `detach` and `resize`: disks of a running system that come, go and grow."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable
from typing import Any

import click
import msgspec

from powervio.system import control
from powervio.system.config import Disk, show_size
from powervio.system.explain import expected
from powervio.system.load import absolute_image

ATTACH_LIMIT = 60.0
"""Seconds; each step of it has a shorter limit of its own, as those of the others."""
DETACH_LIMIT = 120.0
RESIZE_LIMIT = 60.0

_REQUIRED = ("image",)
_HELP = {
    "vios": "The VIO server that serves it; the only one if it is not given. Several are several paths to it.",
    "image": "An image or a block device, pool:POOL/VOLUME, or the nbd:// or nbd+unix:// URI of an export.",
    "nbd": "Where programs find the disk: path of a Unix socket.",
}
"""Where more can be said than what the option takes."""

_system = click.option("--system", "name", metavar="NAME", help="The running system, if there are several.")


def _number_or_text(value: str) -> int | float | str:
    """A number where it looks like one; the system checks it."""
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        return value


def _disk_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of `[[lpar.disk]]`: what the file can say can be said here."""
    hints = typing.get_type_hints(Disk)
    for field in reversed(msgspec.structs.fields(Disk)):
        word = field.name.replace("_", "-")
        kinds = _plain_types(hints[field.name])
        help_text = expected(Disk, field.name)
        if list[str] in kinds:
            option = click.option(f"--{word}", field.name, multiple=True, metavar="VALUE", help=_HELP[field.name])
        elif bool in kinds:
            option = click.option(f"--{word}/--no-{word}", field.name, default=None)
        else:
            option = click.option(
                f"--{word}",
                field.name,
                type=str if str in kinds else _number_or_text,
                metavar="VALUE",
                required=field.name in _REQUIRED,
                help=_HELP.get(field.name, f"{help_text[:1].upper()}{help_text[1:]}."),
            )
        command = option(command)
    return command


def _plain_types(hint: Any) -> set[Any]:
    """The types that a field takes: those of a union, and of the values of a Literal."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return set().union(*(_plain_types(option) for option in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    return {hint}


@click.command()
@click.argument("client")
@_system
@_disk_options
def attach(client: str, name: str | None, **options: Any) -> None:
    """Give the client partition CLIENT of a running system one more disk.

    The options are those of [[lpar.disk]] in a system file; --vios may be left out if there is only one.
    """
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if len(given.get("vios", ())) == 1:
        given["vios"] = given["vios"][0]
    if given.get("image"):
        given["image"] = absolute_image(given["image"], os.path.abspath)
    if given.get("nbd"):
        given["nbd"] = os.path.abspath(given["nbd"])
    arguments = {"client": client, "options": given}
    made = control.ask(control.choose(name), "attach", arguments, timeout=ATTACH_LIMIT)
    click.echo(f"{made['name']}: {made['image']}, served by {made['vios']}")
    if made["nbd"] is not None:
        click.echo(f"    nbd+unix:///?socket={made['nbd']}")


@click.command()
@click.argument("target", metavar="CLIENT/SLOT|SOCKET")
@click.option("--force", is_flag=True, help="Unplug it at once; what is in flight fails.")
@_system
def detach(target: str, force: bool, name: str | None) -> None:
    """Take a disk away from a running system: the one that `ps` calls CLIENT/SLOT, or the one behind SOCKET.

    What is in flight is answered and what was written is flushed before; its image is free when this returns.
    """
    arguments = {"target": _target(target), "force": force}
    gone = control.ask(control.choose(name), "detach", arguments, timeout=DETACH_LIMIT)
    click.echo(f"{gone['name']}: {gone['image']} is detached")


@click.command()
@click.argument("target", metavar="CLIENT/SLOT|SOCKET")
@click.argument("size", type=_number_or_text)
@click.option("--shrink", is_flag=True, help="Allow a smaller size: what is behind it is lost.")
@_system
def resize(target: str, size: int | str, shrink: bool, name: str | None) -> None:
    """Let a disk of a running system have SIZE, a number of bytes or such as "2G".

    Its client learns of it at once, programs on its socket when they connect again.
    """
    arguments = {"target": _target(target), "size": size, "shrink": shrink}
    changed = control.ask(control.choose(name), "resize", arguments, timeout=RESIZE_LIMIT)
    click.echo(f"{changed['name']} has {show_size(changed['size'])}")


def _target(text: str) -> str:
    """A socket's path is made absolute, for the system may run in another folder."""
    return os.path.abspath(text) if os.path.lexists(text) else text
