"""fio writes and verifies on a client's NBD socket, 32 requests in flight, while its partition is suspended and its
server starts anew: the program sees a slow disk, nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from powervio.system.system import System

from .harness import House, run

MIB = 1 << 20
DECLARED = """
[[vios]]
name = "vios1"
[[lpar]]
name = "client1"
memory = "64M"
[[lpar.disk]]
vios = "vios1"
image = "disk.img"
nbd = "one.sock"
queues = {queues}
ring = "{ring}"
requests_per_second = 1500  # so that requests are with the device when it happens, however slow fio is here
burst_requests = 16
"""
TIMES = 8
"""How often it happens while fio runs."""

Disturbance = Callable[[System], Awaitable[None]]


async def suspend_and_resume(system: System) -> None:
    partition = system.partitions["client1"]
    await asyncio.to_thread(system.hypervisor.suspend, partition)
    await asyncio.sleep(0.02)
    system.hypervisor.resume(partition)


async def reset_server(system: System) -> None:
    await system.in_partition("vios1", system.disks[0].server.reset)


async def reset_client(system: System) -> None:
    system.disks[0].client.reset()


async def terminate_and_boot(system: System) -> None:
    await system.servers.terminate("vios1")
    await system.servers.boot("vios1")


async def fio(socket: Path, seconds: float) -> dict[str, Any]:
    """Run it for so long; its report of the job."""
    words = ["fio", "--name=verify", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", "--size=8m"]
    words += ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1"]
    words += ["--verify_state_save=0", "--time_based", f"--runtime={seconds:g}", "--output-format=json"]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")
    (job,) = json.loads(output[output.index(b"{") :])["jobs"]
    found: dict[str, Any] = job
    return found


@pytest.mark.parametrize(("queues", "ring"), [(1, "split"), (2, "packed")])
@pytest.mark.parametrize("disturb", [suspend_and_resume, reset_server, reset_client, terminate_and_boot])
def test_fio_verifies_whatever_happens_below(house: House, disturb: Disturbance, queues: int, ring: str) -> None:
    house.image("disk.img", 8 * MIB)
    file = house.folder / "s.toml"
    file.write_text(DECLARED.format(queues=queues, ring=ring))

    async def scenario(system: System) -> None:
        disk = system.disks[0]
        running = asyncio.ensure_future(fio(house.folder / "one.sock", 3))
        for number in range(TIMES):
            before = disk.driver.requests
            async with asyncio.timeout(20):
                while disk.driver.requests < before + 100 or not disk.driver.in_flight:  # it is at work again
                    assert not running.done(), "fio ended before its time"
                    await asyncio.sleep(0.01)
            await disturb(system)
            assert disk.client.sessions >= number + 1
        job = await running
        assert (job["error"], job["read"]["total_ios"] > 0, job["write"]["total_ios"] > 0) == (0, True, True)
        assert disk.client.sessions > TIMES
        assert disk.driver.resubmitted > 0  # requests were with the device when it happened
        assert (disk.driver.failed, disk.client.rejected, disk.driver.pending) == (0, 0, 0)

    run(file, scenario)
