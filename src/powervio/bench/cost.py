"""What a request costs in hypervisor calls and remote copies, counted with the cost ledger.

The partitions take turns in one thread, so the counts are the same at every run, on every machine: tests pin them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from powervio.bench.reads import BLOCK, BatchReader
from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver
from powervio.memory.abstract import Backing
from powervio.phyp.ledger import Costs
from powervio.transport.crq.redirect import REDIRECT_MIN

DEPTHS = (1, 32)
"""Requests in flight for which costs are shown."""
RDMA_CALLS = ("H_COPY_RDMA", "H_READ_RDMA", "H_WRITE_RDMA")
"""The calls that move data to or from the partner's memory: what "remote copies" are."""

PerRequest = dict[str, float]
"""Calls per request by name, and their `total`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request costs on the average, over both partitions."""

    hcalls: PerRequest
    remote_copies: PerRequest


def cost_of(costs: Costs, requests: int) -> Cost:
    """The cost of each of `requests` requests that cost `costs` together."""
    calls: Mapping[str, int] = costs["hcalls"]
    return Cost(
        _per_request(calls, requests),
        _per_request({name: calls.get(name, 0) for name in RDMA_CALLS}, requests),
    )


def _per_request(calls: Mapping[str, int], requests: int) -> PerRequest:
    each = {name: round(count / requests, 4) for name, count in sorted(calls.items()) if count}
    each["total"] = round(sum(calls.values()) / requests, 4)
    return each


def count_costs(
    backing: Backing,
    revision: int,
    *,
    keep_mapped: bool = False,
    packed: bool = False,
    in_order: bool = False,
    redirect: bool = False,
    rounds: int = 8,
) -> dict[int, Cost]:
    """The cost of a random read of 4 KiB, by depth.

    `keep_mapped`: see `BlockDriver`; `packed` and `in_order`: see `VirtioVio`; `redirect`: whether the VIO server has a
    physical adapter.

    The batch interface keeps the depth: what completes is submitted anew and kicked once.
    """
    result = {}
    for depth in DEPTHS:
        driver = BlockDriver(buffers=depth, buffer_size=BLOCK, keep_mapped=keep_mapped)
        with Rig(threaded=False, redirect_min=REDIRECT_MIN if redirect else None) as rig:
            disk = rig.add_disk(backing, driver, revision=revision, packed=packed, in_order=in_order)
            reader = BatchReader(disk, depth, keep_mapped=keep_mapped)
            reader.run(depth)  # what is made at the first request is no cost of a request
            before = disk.costs()
            done = reader.run(depth * rounds)
            result[depth] = cost_of(disk.costs() - before, done)
    return result
