"""`powervio terminate` and `activate`: VIO servers of a running system that fail and come back."""

from __future__ import annotations

import click

from powervio.system import control

LIMIT = 60.0
"""Seconds; each step of it has a shorter limit of its own."""

_system = click.option("--system", "name", metavar="NAME", help="The running system, if there are several.")


@click.command()
@click.argument("vios")
@_system
def terminate(vios: str, name: str | None) -> None:
    """Let the VIO server VIOS of a running system fail, as by a crash; or a guest that the system booted.

    Disks with another VIO server go on there; clients of the others wait until it boots. Returns when its last I/O has
    ended and its partners have been told.
    """
    control.ask(control.choose(name), "terminate", {"vios": vios}, timeout=LIMIT)
    click.echo(f"{vios} is terminated; powervio activate {vios} starts it again")


@click.command()
@click.argument("vios")
@_system
def activate(vios: str, name: str | None) -> None:
    """Start the VIO server VIOS, which was terminated, again; returns when it serves what it served.

    A guest that the system boots, and that has ended, is powered on again.
    """
    start_again(vios, name)


def start_again(vios: str, name: str | None) -> None:
    """What `activate` does."""
    now = control.ask(control.choose(name), "boot", {"vios": vios}, timeout=LIMIT)
    click.echo(f"{vios} is {now['state']}")
