"""TCP between two client partitions on virtual Ethernet, beside a compiled loop that copies between the same two TAPs.

Both ways are measured in turn, by iperf3 in the partitions' namespaces: first the whole way (TAP, driver, CRQ and
remote DMA, VIO server, switch, and back up), then the loop, which has the very same descriptors meanwhile. What each
round cost in hypervisor calls and remote copies stands in the ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from powervio import _compiled
from powervio.attach.tap import TapAttachment
from powervio.bench.machine import processor_name
from powervio.bench.net_copy import CopyLoop
from powervio.errors import LocalError
from powervio.phyp.ledger import Costs
from powervio.system.load import parse
from powervio.system.served import ServedDevice
from powervio.system.system import System

FRAME = 1514
"""Bytes of a full Ethernet frame at an MTU of 1500."""
_COPIES = ("H_COPY_RDMA", "H_READ_RDMA", "H_WRITE_RDMA")
_LIMIT = 30.0
"""Seconds beside the measurement for a round of iperf3."""


@dataclass(frozen=True, slots=True)
class Round:
    """Both ways, measured one after the other."""

    ours: float
    """Bits a second."""
    loop: float


@dataclass(slots=True)
class Result:
    """What was measured."""

    compiled: bool
    processor: str
    revision: int
    mtu: int
    thread: bool | None
    """Whether the VIO server has a thread of its own; None: as if a system file did not say."""
    seconds: float
    """Of each measurement."""
    rounds: list[Round] = field(default_factory=list)
    frames: float = 0.0
    """Frames that crossed in our rounds, in both directions: large ones count as one."""
    wire_frames: float = 0.0
    """The same as frames of 1500 bytes: what large ones would be on a wire."""
    hcalls: dict[str, float] = field(default_factory=dict)
    """Hypervisor calls of client and server for each of `wire_frames`, and `total`."""
    copies: float = 0.0
    """Remote copies for each of `wire_frames`."""
    copies_of_a_frame: float = 0.0
    """Remote copies for each of `frames`."""

    @property
    def ours(self) -> float:
        """Median, bits a second."""
        return median(one.ours for one in self.rounds)

    @property
    def loop(self) -> float:
        """Median of the copying loop, bits a second."""
        return median(one.loop for one in self.rounds)

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.ours / self.loop

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ours": self.ours, "loop": self.loop, "ratio": self.ratio}


def measure(
    seconds: float,
    rounds: int,
    *,
    revision: int = 1,
    mtu: int = 1500,
    thread: bool | None = None,
    progress: Callable[[str, float], None] = lambda what, part: None,
) -> Result:
    """Measure so many rounds, each way for `seconds`. Raises `LocalError`."""
    if os.geteuid():
        raise LocalError("network namespaces and TAP interfaces take root")
    if shutil.which("iperf3") is None:
        raise LocalError("there is no iperf3 (Debian package iperf3)")
    compiled = _compiled.is_compiled()
    result = Result(compiled, processor_name(), revision, mtu, thread, seconds)
    asyncio.run(_measure(result, rounds, progress))
    return result


def _file(result: Result, spaces: list[str]) -> str:
    text = '[[vios]]\nname = "vios1"\n'
    if result.thread is not None:
        text += f"thread = {str(result.thread).lower()}\n"
    for number, space in enumerate(spaces, 1):
        text += (
            f'[[lpar]]\nname = "client{number}"\n[[lpar.net]]\nvios = "vios1"\nrevision = {result.revision}\n'
            f'netns = "{space}"\ntap = "eth0"\naddress = "192.0.2.{number}/24"\nmtu = {result.mtu}\n'
        )
    return text


async def _measure(result: Result, rounds: int, progress: Callable[[str, float], None]) -> None:
    spaces = [f"pvbench{os.getpid()}-{number}" for number in (1, 2)]
    system = System(parse(_file(result, spaces), "bench.toml", Path.cwd()))
    await system.start()
    try:
        ends = [device for device in system.devices if isinstance(device, ServedDevice)]
        taps = [tap for end in ends for tap in end.attachments if isinstance(tap, TapAttachment)]
        await _iperf(spaces, 0.2)  # neighbours and caches are warm then
        costs: Costs | None = None
        data = frames = 0.0
        for number in range(rounds):
            progress("virtio over CRQ", number / rounds)
            before, counted = _costs(ends), _frames(ends)
            ours = await _iperf(spaces, result.seconds)
            spent, after = _costs(ends) - before, _frames(ends)
            costs = spent if costs is None else costs + spent
            data += after[1] - counted[1]
            frames += after[0] - counted[0]
            progress("copying loop", (number + 0.5) / rounds)
            loop = await _beside(taps, spaces, result.seconds)
            result.rounds.append(Round(ours, loop))
        assert costs is not None
        _count(result, costs, frames, data)
    finally:
        await system.stop()


async def _beside(taps: list[TapAttachment], spaces: list[str], seconds: float) -> float:
    """The same with the copying loop between the TAPs."""
    copying = CopyLoop(*(tap.lend() for tap in taps))
    thread = threading.Thread(target=copying.run, name="copying")
    thread.start()
    try:
        return await _iperf(spaces, seconds)
    finally:
        copying.stop()
        await asyncio.to_thread(thread.join)
        copying.close()
        for tap in taps:
            tap.take_back()


async def _iperf(spaces: list[str], seconds: float) -> float:
    """Bits a second from the first partition to the second."""
    server = await _start(spaces[1], "iperf3", "-s", "-1", "--forceflush")
    client = None
    try:
        async with asyncio.timeout(seconds + _LIMIT):
            assert server.stdout is not None
            while b"listening" not in (line := await server.stdout.readline()):
                if not line:
                    raise LocalError("iperf3 does not listen")
            client = await _start(spaces[0], "iperf3", "-J", "-c", "192.0.2.2", "-t", f"{max(1, round(seconds))}")
            output, _ = await client.communicate()
            await server.communicate()
    except TimeoutError:
        raise LocalError(f"iperf3 did not end within {seconds + _LIMIT:.0f} s") from None
    finally:
        for process in (client, server):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
    answer = json.loads(output)
    if "error" in answer:
        raise LocalError(f"iperf3: {answer['error']}")
    return float(answer["end"]["sum_received"]["bits_per_second"])


async def _start(space: str, *words: str) -> asyncio.subprocess.Process:
    inside = ("ip", "netns", "exec", space, *words)
    return await asyncio.create_subprocess_exec(
        *inside, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )


def _costs(ends: list[ServedDevice]) -> Costs:
    found = None
    for end in ends:
        for adapter in (end.client_adapter, end.server_adapter):
            costs = adapter.ledger.snapshot()
            found = costs if found is None else found + costs
    assert found is not None
    return found


def _frames(ends: list[ServedDevice]) -> tuple[int, float]:
    """Frames that the drivers sent, and what they would be in frames of 1500 bytes."""
    frames, wire = 0, 0.0
    for end in ends:
        report = end.driver.report()
        frames += report["sent"]
        wire += max(report["sent"], report["sent_bytes"] / FRAME)
    return frames, wire


def _count(result: Result, costs: Costs, frames: float, wire: float) -> None:
    result.frames, result.wire_frames = frames, wire
    result.hcalls = {name: count / wire for name, count in sorted(costs["hcalls"].items())}
    result.hcalls["total"] = sum(costs["hcalls"].values()) / wire
    copies = sum(costs["hcalls"].get(name, 0) for name in _COPIES)
    result.copies, result.copies_of_a_frame = copies / wire, copies / frames
