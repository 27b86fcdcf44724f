"""`powervio doctor`: what is here, and what each missing thing would enable."""

from __future__ import annotations

import json
import platform
import shlex
import sys

import click

from powervio import __version__, _compiled
from powervio.cli import peers

_WIDE = 70
"""Columns of a terminal from which the table fits."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what is here, and what each missing program would enable."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def examine() -> dict[str, object]:
    """The state of this machine as plain values, as `doctor --json` prints them."""
    install = peers.install_command(peers.missing())
    return {
        "powervio": __version__,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "compiled": _compiled.is_compiled(),
        "compiled_modules": list(_compiled.compiled_modules()),
        "not_compiled": list(_compiled.missing_extensions()),
        "peers": [
            {"name": peer.name, "found": peer.find(), "package": peer.package, "enables": peer.enables}
            for peer in peers.PEERS
        ],
        "install": shlex.join(install) if install else None,
    }


def _show(report: dict[str, object]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    hot_path = "compiled" if _compiled.is_compiled() else "interpreted (slow, but complete)"
    console.print(f"powervio {report['powervio']}, Python {report['python']}, {report['machine']}", highlight=False)
    console.print(f"hot path: {hot_path}\n", highlight=False)
    table = Table("", "what", "package", "enables", box=box.SIMPLE_HEAD, pad_edge=False)
    for peer in peers.PEERS:
        there = peer.find() is not None
        mark = "[green]yes[/green]" if there else "[yellow]no[/yellow]"
        cells = (escape(peer.name), peer.package or "(kernel)", peer.enables)
        if console.width < _WIDE:
            console.print(f"{mark}: {cells[0]} ({cells[1]})\n  {cells[2]}", highlight=False)
        else:
            table.add_row(mark, *cells)
    if table.row_count:
        console.print(table)
    if report["install"]:
        console.print("All that is missing comes with:", highlight=False)
        console.print(f"  sudo {report['install']}", highlight=False, soft_wrap=True, markup=False)
    else:
        console.print("Nothing is missing that a package could give.", highlight=False)
