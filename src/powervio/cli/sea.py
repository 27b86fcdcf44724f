"""`powervio sea`: the Shared Ethernet Adapters of a running system."""

from __future__ import annotations

import json

import click

from powervio.system import control


@click.command()
@click.argument("adapter", required=False)
@click.option(
    "--mode",
    type=click.Choice(["auto", "sharing", "standby", "forced"]),
    help="What is wanted of ADAPTER from now on: standby hands over to the other, forced takes over from it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--system", "name", metavar="NAME", help="The running system, if there are several.")
def sea(adapter: str | None, mode: str | None, as_json: bool, name: str | None) -> None:
    """Show what entstat says of ADAPTER, or of all Shared Ethernet Adapters; with --mode, make it fail over."""
    if mode is not None and adapter is None:
        raise click.UsageError("--mode needs the name of an adapter")
    found = control.ask(control.choose(name), "sea", {"name": adapter, "mode": mode}, timeout=30.0)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for entry in found["sea"]:
        if mode is not None:
            click.echo(f"{entry['name']} is {entry['state']}, mode {entry['mode']}")
        else:
            click.echo(entry["entstat"])
