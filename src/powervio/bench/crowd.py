"""A crowd: one VIO server that serves a disk to each of many clients, measured from its start to its end.

It is a system as `powervio up` runs it (`system.System`), from a system file, with an image and an NBD socket for each
client. `python -m powervio.bench.crowd` runs one in a process of its own, whose memory nothing else has been in before,
and prints what it measured as one JSON object; `bench.scale` starts it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from powervio.bench.cost import Cost, cost_of
from powervio.bench.memory import ProcessMemory
from powervio.bench.reads import BLOCK, LoopReader, write_numbered
from powervio.bench.rig import costs_of
from powervio.errors import LocalError, PowervioError
from powervio.phyp.ledger import Costs
from powervio.system.load import load
from powervio.system.system import System

IMAGE_BLOCKS = 16
"""Blocks of 4 KiB in each client's image; no two blocks of all images have one number."""
LIMIT = 20.0
"""Seconds that reads may take longer than they are told to."""
_QUIET = 0.02
"""Seconds without a hypervisor call after which all are counted."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one crowd took. Bytes, descriptors and calls are for each client: its partition and its pair of adapters."""

    partitions: int
    """Client partitions."""
    check_seconds: float
    """Reading and checking the system file."""
    start_seconds: float
    """From the begin of the start until every client's driver runs (DRIVER_OK) and its NBD socket listens."""
    stop_seconds: float
    """Flushing and ending all."""
    resident_bytes: int
    """Resident memory of an idle one that is not partition memory."""
    page_table_bytes: int
    """The kernel's, to map it and the partition memory."""
    partition_bytes: int
    """Partition memory that is in use, the client's and the server's for it."""
    descriptors: float
    """Open files of the process."""
    reads: int
    """Random reads of 4 KiB, each verified, by all clients at once with one in flight each."""
    reads_per_second: float
    hcalls: dict[str, float]
    """Hypervisor calls of one read by name, and their `total`, from the cost ledger."""
    remote_copies: dict[str, float]
    """Those of them that move data between partitions."""
    report_seconds: float
    """Making the answer to `powervio ps`."""


def system_file(partitions: int, images: Path, sockets: Path) -> str:
    """The text of the system file of a crowd."""
    parts = ['[[vios]]\nname = "vios1"\n']
    for number in range(partitions):
        parts.append(
            f'[[lpar]]\nname = "client{number}"\n[[lpar.disk]]\nvios = "vios1"\n'
            f"image = {json.dumps(str(images / f'{number}.img'))}\n"
            f"nbd = {json.dumps(str(sockets / f'{number}.sock'))}\n"
        )
    return "".join(parts)


def measure_crowd(partitions: int, seconds: float, images: Path, sockets: Path) -> Crowd:
    """Make the images in a folder, run the crowd, read for `seconds` seconds, and end it. Raises `LocalError`."""
    for number in range(partitions):
        write_numbered(images / f"{number}.img", IMAGE_BLOCKS * BLOCK, number * IMAGE_BLOCKS)
    file = images / "crowd.toml"
    file.write_text(system_file(partitions, images, sockets))
    return asyncio.run(_measure(partitions, seconds, file))


async def _measure(partitions: int, seconds: float, file: Path) -> Crowd:
    gc.collect()
    before = ProcessMemory.now()
    began = time.perf_counter()
    config = load(file)
    checked = time.perf_counter()
    system = System(config)
    await system.start()
    started = time.perf_counter()
    try:
        gc.collect()
        idle = ProcessMemory.now() - before
        reads, read_seconds, cost = await _read(system, seconds)
        reporting = time.perf_counter()
        json.dumps(system.report())
        reported = time.perf_counter()
    finally:
        stopping = time.perf_counter()
        await system.stop()
        stopped = time.perf_counter()
    return Crowd(
        partitions=partitions,
        check_seconds=round(checked - began, 4),
        start_seconds=round(started - checked, 4),
        stop_seconds=round(stopped - stopping, 4),
        resident_bytes=idle.beside // partitions,
        page_table_bytes=idle.page_tables // partitions,
        partition_bytes=idle.partitions // partitions,
        descriptors=round(idle.descriptors / partitions, 2),
        reads=reads,
        reads_per_second=round(reads / read_seconds, 1),
        hcalls=cost.hcalls,
        remote_copies=cost.remote_copies,
        report_seconds=round(reported - reporting, 4),
    )


async def _read(system: System, seconds: float) -> tuple[int, float, Cost]:
    """Let all clients read at once: how many reads, in how many seconds, and what each cost."""
    readers = [
        LoopReader(disk, 1, numbered=True, first=number * IMAGE_BLOCKS) for number, disk in enumerate(system.disks)
    ]
    await _read_for(system, readers, 0.0)  # what is made at the first request is no cost of a request
    before = await _settled_costs(system)
    began = time.perf_counter()
    reads = await _read_for(system, readers, seconds)
    taken = time.perf_counter() - began
    return reads, taken, cost_of(await _settled_costs(system) - before, reads)


async def _read_for(system: System, readers: list[LoopReader], seconds: float) -> int:
    end = time.monotonic() + seconds
    reading = asyncio.gather(*(reader.read_until(end) for reader in readers))
    if not (await asyncio.wait({reading}, timeout=seconds + LIMIT))[0]:
        for disk in system.disks:  # what the device has cannot be cancelled
            disk.driver.fail_all("a read did not come back")
            disk.client.stop()
    return sum(await reading)


async def _settled_costs(system: System) -> Costs:
    """What all adapters and partitions have cost, when the last interrupt of the last read has been ended."""
    ledgers = []
    for disk in system.disks:
        ledgers += [disk.client_adapter.ledger, disk.server_adapter.ledger]
    ledgers += [partition.ledger for partition in system.hypervisor.partitions.values()]
    found = None
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        total = costs_of(ledgers)
        if total == found:
            return total
        found = total
        await asyncio.sleep(_QUIET)
    raise LocalError(f"hypervisor calls went on for {LIMIT:.0f} s with nothing to do")


def main(arguments: list[str]) -> int:
    """`PARTITIONS SECONDS IMAGES SOCKETS`: print `{"crowd": ...}` or `{"error": ...}`."""
    partitions, seconds, images, sockets = arguments
    try:
        crowd = measure_crowd(int(partitions), float(seconds), Path(images), Path(sockets))
    except (PowervioError, OSError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({"crowd": asdict(crowd)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
