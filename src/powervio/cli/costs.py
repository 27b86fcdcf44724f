"""Cost tables on the screen, for the commands that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    "H_PUT_TCE_INDIRECT": "buffers mapped",
    "H_STUFF_TCE": "buffers unmapped",
    "H_PUT_RTCE": "data redirected",
    "H_REMOVE_RTCE": "redirection ended",
}


def cost_table(costs: Mapping[int, Cost], *, narrow: bool = False) -> Table:
    """Hypervisor calls per request by name, a column for each depth, and the remote copies among them.

    A `narrow` one does not say what the calls are for.
    """

    title = "calls, at depth" if narrow else "calls per request"
    table = Table(title, box=box.SIMPLE_HEAD, pad_edge=False)
    for depth in costs:
        table.add_column(str(depth) if narrow else f"depth {depth}", justify="right")
    if not narrow:
        table.add_column("for")

    def add(name: str, numbers: Iterable[float], meaning: str, style: str = "") -> None:
        table.add_row(name, *map(_number, numbers), *([] if narrow else [meaning]), style=style)

    names = sorted({name for cost in costs.values() for name in cost.hcalls} - {"total"})
    for name in names:
        add(name, (cost.hcalls.get(name, 0.0) for cost in costs.values()), _MEANING.get(name, ""))
    table.add_section()
    add("all hypervisor calls", (cost.hcalls["total"] for cost in costs.values()), "", "bold")
    copies = " + ".join(name.removeprefix("H_").removesuffix("_RDMA") for name in RDMA_CALLS)
    add("remote copies", (cost.remote_copies["total"] for cost in costs.values()), copies, "bold")
    return table


def _number(value: float) -> str:
    return f"{value:.2f}" if value else "-"
