"""Logical LAN adapters of VIO servers: plugged in at a named switch, opened by their unit address."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.gateway.remote_port import RemotePort
from powervio.gateway.server import Gateway
from powervio.native.lan_client import BufferPool, LanPort
from powervio.network.port import Frame
from powervio.network.switch import PortOptions
from powervio.system.lan import memory_of, open_lan, plug_lan, unplug_lan
from powervio.system.servers import ServerState
from powervio.system.system import System
from powervio.vio.kernel import PartitionKernel

from .harness import House, run

MAC = b"\x02\0\0\0\0\7"
TWO = '[[vios]]\nname = "vios1"\n[[vios]]\nname = "vios2"\nprocess = true\n[[lpar]]\nname = "client1"\nmemory = "16M"\n'


def file(folder: Path) -> Path:
    (folder / "lan.toml").write_text(TWO)
    return folder / "lan.toml"


def test_server_in_this_process_has_a_trunk_at_a_named_switch(house: House) -> None:
    async def scenario(system: System) -> None:
        device = system.switch("LAB").add(PortOptions(name="device", mac=MAC, pvid=20))
        options = PortOptions(name="vios1.trunk", vlans=(20,), trunk=1)
        adapter = plug_lan(system, "vios1", options, switch="LAB")
        kernel = system.kernels["vios1"]
        free = kernel.pages.free_bytes
        pools = (BufferPool(2048, 16),)
        port = await asyncio.to_thread(kernel.call, lambda: open_lan(kernel, adapter.unit_address, pools=pools))
        assert isinstance(port, LanPort)
        assert free - kernel.pages.free_bytes == memory_of(pools)
        assert device.send(Frame(b"\2\0\0\0\0\x63" + MAC + b"\x88\xb5out"))
        frame = await asyncio.to_thread(kernel.call, port.receive)
        assert isinstance(frame, Frame)
        assert bytes(frame.data) == b"\2\0\0\0\0\x63" + MAC + b"\x81\0\0\x14\x88\xb5out"
        await asyncio.to_thread(kernel.call, port.close)
        assert kernel.pages.free_bytes == free
        unplug_lan(adapter)
        assert [one.name for one in system.switch("LAB").ports] == ["device"]
        with pytest.raises(LocalError, match="no partition named nobody"):
            plug_lan(system, "nobody", options)
        with pytest.raises(LocalError, match=f"no adapter {adapter.unit_address:#x}"):
            await asyncio.to_thread(kernel.call, lambda: open_lan(kernel, adapter.unit_address))

    run(file(house.folder), scenario)


def test_server_that_is_a_process_keeps_its_adapter_when_it_is_killed(house: House) -> None:
    async def scenario(system: System) -> None:
        adapter = plug_lan(system, "vios2", PortOptions(name="vios2.lan"))
        pid = system.processes["vios2"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while system.servers.state("vios2") is not ServerState.TERMINATED:
                await asyncio.sleep(0.01)
        await system.processes["vios2"].vacated(10)
        await system.servers.boot("vios2")
        assert system.partitions["vios2"].nodes[adapter.unit_address] is adapter.node
        unplug_lan(adapter)
        assert adapter.unit_address not in system.partitions["vios2"].nodes

    run(file(house.folder), scenario)


def test_adapter_that_is_plugged_in_behind_a_door_is_found(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        partition = system.hypervisor.create_partition("elsewhere", 16 << 20)
        system.partitions["elsewhere"] = partition
        with Gateway() as gateway:
            door = gateway.add(partition, str(tmp_path / "door"))
            gateway.start()
            remote = await asyncio.to_thread(RemotePort.connect, door.path, limit=10)
            kernel = PartitionKernel(remote)
            try:
                adapter = plug_lan(system, "elsewhere", PortOptions(name="elsewhere.lan", mac=MAC))
                port = await asyncio.to_thread(open_lan, kernel, adapter.unit_address)
                other = system.switch("ETHERNET0").add(PortOptions(name="other"))
                assert other.send(Frame(MAC + b"\2\0\0\0\0\1\x88\xb5hello"))
                frame = await asyncio.to_thread(port.receive)
                assert frame is not None
                assert bytes(frame.data) == MAC + b"\2\0\0\0\0\1\x88\xb5hello"
            finally:
                kernel.close()
                remote.close()
                await asyncio.to_thread(gateway.stop)
        system.hypervisor.terminate(partition)

    run(file(tmp_path), scenario)
