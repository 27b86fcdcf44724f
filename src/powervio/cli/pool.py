"""`powervio pool`: the logical volumes of storage pools."""

from __future__ import annotations

import json
from typing import Any

import click

from powervio.errors import LocalError
from powervio.system import control
from powervio.system.config import Size, show_size
from powervio.system.load import load
from powervio.system.rundir import is_running, running_names
from powervio.system.volumes import answer_without

TIMEOUT = 30.0
"""Seconds."""


class _SizeType(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(Size.parse(int(value) if str(value).isdigit() else value))
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


_SYSTEM = click.option("--system", metavar="NAME", help="The running system; not needed if there is one only.")
_FILE = click.option(
    "-f", "--file", type=click.Path(), help="The system file that declares the pools, when its system does not run."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def pool() -> None:
    """Make, resize, delete and list the logical volumes of storage pools.

    A pool is a directory that a system file declares ([[pool]] name, path); its volumes are sparse files. A disk is
    served from one by image = "pool:POOL/VOLUME".
    """


@pool.command("list")
@click.argument("name", metavar="[POOL]", required=False)
@_SYSTEM
@_FILE
@_JSON
def list_(name: str | None, system: str | None, file: str | None, *, as_json: bool) -> None:
    """List the pools and their volumes."""
    report = _ask(system, file, verb="list", target=name or "")
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)


@pool.command()
@click.argument("volume", metavar="POOL/VOLUME")
@click.argument("size", type=_SizeType())
@_SYSTEM
@_FILE
@_JSON
def create(volume: str, size: int, system: str | None, file: str | None, *, as_json: bool) -> None:
    """Make a volume of SIZE, such as 10G; it takes space as it is written."""
    result = _ask(system, file, verb="create", target=volume, size=size)
    _tell(result, f"made {volume}, {show_size(size)}", as_json=as_json)


@pool.command()
@click.argument("volume", metavar="POOL/VOLUME")
@click.argument("size", type=_SizeType())
@click.option("--shrink", is_flag=True, help="Allow SIZE to be smaller: what is behind it is lost.")
@_SYSTEM
@_FILE
@_JSON
def resize(volume: str, size: int, system: str | None, file: str | None, *, shrink: bool, as_json: bool) -> None:
    """Give a volume another SIZE. A client that it is served to learns of it at once."""
    result = _ask(system, file, verb="resize", target=volume, size=size, shrink=shrink)
    told = f"; told {result['served_to']}" if result["served_to"] else ""
    _tell(result, f"{volume} has {show_size(size)}, it had {show_size(result['was'])}{told}", as_json=as_json)


@pool.command()
@click.argument("volume", metavar="POOL/VOLUME")
@_SYSTEM
@_FILE
@_JSON
def delete(volume: str, system: str | None, file: str | None, *, as_json: bool) -> None:
    """Delete a volume and what is in it. One that is served or used is refused."""
    result = _ask(system, file, verb="delete", target=volume)
    _tell(result, f"deleted {volume}", as_json=as_json)


def _ask(system: str | None, file: str | None, **arguments: Any) -> dict[str, Any]:
    if file is None:
        if system is None and not running_names():
            raise LocalError("no system is running; --file names the system file that declares the pools")
        return control.ask(control.choose(system), "pool", arguments, timeout=TIMEOUT)
    if system is not None:
        raise LocalError("--system is for a running system, --file for one that does not run: give one of them")
    config = load(file, look_at_disks=False)
    if is_running(config.name):
        return control.ask(config.name, "pool", arguments, timeout=TIMEOUT)
    return answer_without(config, arguments)


def _tell(result: dict[str, Any], words: str, *, as_json: bool) -> None:
    click.echo(json.dumps(result) if as_json else words)


def _show(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from powervio.cli.ps import show_bytes

    console = Console(highlight=False)
    if not report["pools"]:
        console.print("no pools are declared")
    for entry in report["pools"]:
        space = f", {show_bytes(entry['free'])} of {show_bytes(entry['size'])} free" if entry["size"] else ""
        console.print(f"{entry['name']}: {entry['path']}{space}", markup=False, soft_wrap=True)
        if not entry["volumes"]:
            console.print("    no volumes")
            continue
        table = Table("volume", "size", "allocated", "served to", box=box.SIMPLE_HEAD)
        for number in (1, 2):
            table.columns[number].justify = "right"
        for volume in entry["volumes"]:
            used = volume["served_to"] or ("in use" if volume["in_use"] else "-")
            table.add_row(
                escape(volume["name"]), show_bytes(volume["size"]), show_bytes(volume["allocated"]), escape(used)
            )
        console.print(table)
