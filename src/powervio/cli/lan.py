"""`powervio bench net`: TCP between two client partitions."""

from __future__ import annotations

import json

import click

from powervio.bench.net import Result, measure
from powervio.cli.measuring import measuring


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--seconds", type=click.IntRange(1, 600), default=2, show_default=True, help="Of each measurement.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Both ways, in turn.")
@click.option("--revision", type=click.IntRange(0, 1), default=1, show_default=True, help="Of the protocol.")
@click.option("--mtu", type=click.IntRange(576, 65535), default=1500, show_default=True, help="Bytes.")
@click.option(
    "--thread/--no-thread",
    default=None,
    help="Whether the VIO server has a thread of its own; not given: as in a file.",
)
def net(as_json: bool, seconds: int, rounds: int, revision: int, mtu: int, thread: bool | None) -> None:
    """TCP between two client partitions, by iperf3 in their network namespaces; as root.

    Beside it, in turn, a compiled loop copies frames between the same two TAP interfaces: less cannot be done by
    anything that is between them. Hypervisor calls and remote copies are counted for each frame of 1500 bytes, in
    both directions: of a large frame, for each that it would be on a wire.
    """
    with measuring() as tell:
        result = measure(
            seconds,
            rounds,
            revision=revision,
            mtu=mtu,
            thread=thread,
            progress=tell,
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)


def _show(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    hot_path = "compiled" if result.compiled else "interpreted"
    console.print(
        f"iperf3 between two client partitions, revision {result.revision}, MTU {result.mtu}, hot path {hot_path};"
        f" {result.processor}."
    )
    table = Table("Gbit/s", "virtio over CRQ", "copying loop", box=box.SIMPLE_HEAD, pad_edge=False)
    for number in (1, 2):
        table.columns[number].justify = "right"
    for number, one in enumerate(result.rounds, 1):
        table.add_row(f"round {number}", f"{one.ours / 1e9:.2f}", f"{one.loop / 1e9:.2f}")
    table.add_row("median", f"{result.ours / 1e9:.2f}", f"{result.loop / 1e9:.2f}")
    console.print(table)
    console.print(f"Ratio of the medians: {result.ratio:.2f}.")
    large = result.wire_frames / result.frames
    console.print(
        f"For each frame of 1500 bytes: {result.copies:.2f} remote copies, {result.hcalls['total']:.2f} hypervisor"
        f" calls. Each that crossed was {large:.1f} of them, and took {result.copies_of_a_frame:.2f} remote copies."
    )
