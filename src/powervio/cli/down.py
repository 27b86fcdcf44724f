"""`powervio down`: end a running system, and wait until it has ended."""

from __future__ import annotations

import click

from powervio.errors import LocalError
from powervio.system import control

TIMEOUT = 60.0
"""Seconds: flushing what a disk has in its cache can take long."""


@click.command()
@click.argument("name", required=False)
@click.option("--timeout", default=TIMEOUT, show_default=True, type=click.FloatRange(min=0.1), metavar="SECONDS")
def down(name: str | None, timeout: float) -> None:
    """Stop a running system: NAME, or the only one.

    What was written is flushed, and the images are free when this returns.
    """
    name = control.choose(name)
    control.ask(name, "down", timeout=timeout)
    if not control.wait_until_down(name, timeout):
        raise LocalError(f'the system "{name}" has stopped, but its process did not end within {timeout:g} s')
    click.echo(f"{name} is down")
