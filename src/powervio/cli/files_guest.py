"""The guest's part of `powervio bench files`, for people to read."""

from __future__ import annotations

from powervio.bench.files_guest import Result
from powervio.cli.conditions import host, others_note


def show(result: Result) -> None:
    """Print a result for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    conditions = result.conditions
    console.print(
        f"Folders on {conditions['filesystem']} in a guest ({conditions['arch']}, Linux {conditions['guest_kernel']},"
        f" TCG), {conditions['mount']}; {host(conditions)}."
    )
    table = Table("in the guest", "over CRQ", "-virtfs", "", "ratio", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in result.rows:
        ours, theirs = row.rates
        low, high = min(row.ratios), max(row.ratios)
        table.add_row(
            row.work.name, f"{ours:,.0f}", f"{theirs:,.0f}", row.work.unit, f"{row.ratio:.2f} ({low:.2f}-{high:.2f})"
        )
    console.print(table)
    console.print(f"Medians of {conditions['rounds']} rounds; of the ratio, all rounds are in brackets.")
    if note := others_note(result.others, conditions):
        console.print(note)
