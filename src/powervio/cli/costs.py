"""Cost tables on the screen, for the commands that show them."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from powervio.bench.cost import RDMA_CALLS, Cost

_MEANING = {
    "H_COPY_RDMA": "rings and data",
    "H_READ_RDMA": "request header",
    "H_WRITE_RDMA": "status byte",
    "H_SEND_CRQ": "kick, used notification",
    "H_XIRR": "interrupt accepted",
    "H_EOI": "interrupt ended",
    "H_PUT_TCE": "buffer mapped, unmapped",
}


def cost_table(costs: Mapping[int, Cost]) -> Table:
    """Hypervisor calls per request by name, a column for each depth, and the remote copies among them."""
    table = Table("calls per request", box=box.SIMPLE_HEAD, pad_edge=False)
    for depth in costs:
        table.add_column(f"depth {depth}", justify="right")
    table.add_column("for")
    names = sorted({name for cost in costs.values() for name in cost.hcalls} - {"total"})
    for name in names:
        table.add_row(name, *(_number(cost.hcalls.get(name, 0.0)) for cost in costs.values()), _MEANING.get(name, ""))
    table.add_section()
    table.add_row("all hypervisor calls", *(_number(cost.hcalls["total"]) for cost in costs.values()), "", style="bold")
    copies = " + ".join(name.removeprefix("H_").removesuffix("_RDMA") for name in RDMA_CALLS)
    table.add_row(
        "remote copies", *(_number(cost.remote_copies["total"]) for cost in costs.values()), copies, style="bold"
    )
    return table


def _number(value: float) -> str:
    return f"{value:.2f}" if value else "-"
