"""What figures have to be read with, in words: the machine, and who else used it."""

from __future__ import annotations

from collections.abc import Mapping

_QUIET = 0.1
"""Processors that others may use without a word."""


def host(conditions: Mapping[str, object]) -> str:
    """The machine of a run, of `bench.machine.conditions` and what was added at its end."""
    hot_path = "compiled" if conditions["compiled"] else "interpreted"
    return (
        f"kernel {conditions['kernel']}, {conditions['processors']} x {conditions['cpu']}, hot path {hot_path}, load"
        f" {conditions['load_average_before']} to {conditions['load_average_after']}"
    )


def others_note(others: float, conditions: Mapping[str, object]) -> str:
    """That others used so many processors, in rich's markup; empty where they hardly did."""
    if others <= _QUIET:
        return ""
    return (
        f"[red]Others used {others:.2f} of the {conditions['processors']} processors meanwhile: the rates, and their"
        f" ratios, are not those of a quiet machine.[/red]"
    )
