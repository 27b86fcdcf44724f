"""One device of a running system that the table of types declares: both ends, and what programs use it by."""

from __future__ import annotations

import dataclasses
from typing import Any

from powervio.devices.net import NetDevice
from powervio.devices.p9 import P9Device
from powervio.drivers.net import NetDriver
from powervio.errors import LocalError
from powervio.network.switch import SwitchPort
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.system.guest_end import GuestEnd
from powervio.system.net_section import Place
from powervio.system.section import AdapterSection
from powervio.system.types import Attachment, DeviceType
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio.device import Device


class ServedDevice:
    """A virtio device of a row: its device on the VIO server, its driver on the client."""

    def __init__(
        self,
        row: DeviceType,
        where: str,
        declared: AdapterSection,
        server_adapter: VirtualAdapter,
        client_adapter: VirtualAdapter,
        server_kernel: PartitionKernel,
        client_kernel: PartitionKernel | None,
        place: Place,
    ) -> None:
        """`client_kernel` is None for a guest, which has drivers of its own. Raises `LocalError`."""
        self.row = row
        self.where = where
        self.declared = declared
        self.server_adapter = server_adapter
        self.client_adapter = client_adapter
        self.place = place
        self.device: Device = row.make_device(declared, place)
        self.driver: Any = None
        self.server = VirtioCrq(server_kernel, server_adapter.node, self.device)
        self.client_end: VirtioVio | GuestEnd
        self.attachments: list[Attachment] = []
        if client_kernel is None:
            assert isinstance(client_adapter, VioAdapter)
            self.client_end = GuestEnd(client_adapter)
            return
        self.driver = row.driver(declared)
        self.client_end = VirtioVio(
            client_kernel,
            client_adapter.node,
            self.driver,
            revision=declared.revision,
            big_endian=declared.byteorder == "big",
        )
        self.attachments = row.make_attachments(declared, self.driver, place)

    @property
    def client(self) -> VirtioVio:
        """The end of a client of ours, which is no guest."""
        assert isinstance(self.client_end, VirtioVio)
        return self.client_end

    def server_died(self) -> None:
        """Its VIO server was terminated: whoever looked on there is told."""
        close = getattr(self.device, "close", None)
        if close is not None:
            close()

    def serve_anew(self, kernel: PartitionKernel) -> None:
        """The VIO server boots: a new device on the same adapter, not started yet."""
        self.device = self.row.make_device(self.declared, self.place)
        self.server = VirtioCrq(kernel, self.server_adapter.node, self.device)

    def stop_client(self) -> None:
        """The client partition ends: whoever still waits for the driver is told."""
        close = getattr(self.driver, "close", None)
        if close is not None:
            close()
        self.client_end.stop()

    def device_state(self) -> dict[str, Any]:
        """What has to survive on the server's side; in its thread, after the client has stopped."""
        return self.device.state()

    def driver_state(self) -> dict[str, Any]:
        """The same of the client's side."""
        state: dict[str, Any] = self.driver.snapshot()
        return state

    def restore(self, device: dict[str, Any], driver: dict[str, Any]) -> None:
        """Take both over, before either side starts. Raises `LocalError`."""
        self.device.restore(device)
        port = getattr(self.device, "port", None)
        if isinstance(port, SwitchPort) and port.mac is not None:
            port.set_mac(self.device.mac)  # type: ignore[attr-defined]
        self.driver.restore(driver)

    def retire_client(self) -> None:
        """The client's side ends for good."""
        self.stop_client()
        self.client_end.retire()

    def retire_server(self) -> None:
        """The server's side ends for good; in its thread. Whoever watches a port is told."""
        self.server.retire()
        if isinstance(self.device, NetDevice | P9Device):
            self.device.close()
        for port in getattr(self.device, "ports", {}).values():
            port.removed = True
            if port.on_change is not None:
                port.on_change()

    def unplug(self, hypervisor: Hypervisor) -> None:
        """Remove both adapters."""
        assert isinstance(self.client_adapter, VioAdapter)
        hypervisor.remove_pair(self.client_adapter)

    def find_port(self, name: str) -> Any:
        """The operator's side of a console's port. Raises `LocalError` for a device that has none."""
        find = getattr(self.device, "find", None)
        if find is None:
            raise LocalError(f"{self.where} is no console")
        return find(name)

    def entries(self) -> list[dict[str, Any]]:
        """What `ps` shows of both ends, the client's first."""
        client = {
            **adapter_entry(self.row.name, self.client_adapter),
            "socket": self.declared.socket,
            "requests": self.device.requests,
        }
        if isinstance(self.device, NetDevice):
            client["net"] = self._net_entry()
        if isinstance(self.device, P9Device):
            client["fs"] = self._fs_entry(self.device)
        if isinstance(self.client_end, GuestEnd):
            client |= {
                "state": self.client_end.state(self.server.state),
                "revision": self.server.revision,
                "failure": None,
            }
        else:
            client |= {
                "state": self.client_end.state.value,
                "revision": self.client_end.revision,
                "failure": self.client_end.failure,
                "sessions": self.client_end.sessions,
                "rejected": self.client_end.rejected,
            }
        server = {
            **adapter_entry(self.row.name, self.server_adapter),
            "state": self.server.state,
            "revision": self.server.revision,
            "requests": self.device.requests,
            "rejected": self.server.rejected,
        }
        return [client, server]

    def _fs_entry(self, device: P9Device) -> dict[str, Any]:
        """What `ps` shows of a share beside what it shows of all."""
        declared: Any = self.declared
        return {
            "dir": declared.dir,
            "tag": device.tag,
            "readonly": declared.readonly,
            "identity": declared.identity,
            "mount": declared.mount,
            "counters": dataclasses.asdict(device.counters),
        }

    def _net_entry(self) -> dict[str, Any]:
        """What `ps` shows of a network adapter beside what it shows of all."""
        assert isinstance(self.device, NetDevice)
        declared: Any = self.declared
        return {
            "switch": declared.switch,
            "pvid": declared.pvid,
            "vlans": declared.vlans,
            "mac": self.device.mac.hex(":"),
            "mtu": self.device.mtu,
            "netns": declared.netns,
            "tap": declared.tap,
            "link": self.device.link_up,
            "driver": self.driver.report() if isinstance(self.driver, NetDriver) else None,
            "device": self.device.report(),
        }


def adapter_entry(kind: str, adapter: VirtualAdapter) -> dict[str, Any]:
    """What `ps` shows of any adapter."""
    partner = getattr(adapter, "partner", None)
    costs = adapter.ledger.snapshot()
    return {
        "partition": adapter.partition.name,
        "type": kind,
        "role": "server" if adapter.node.is_server else "client",
        "slot": adapter.slot,
        "unit_address": adapter.unit_address,
        "location_code": adapter.node.location_code,
        "partner": None if partner is None else {"partition": partner.partition.name, "slot": partner.slot},
        **costs,
        "hcalls": {"H_SEND_CRQ": 0, **costs["hcalls"]},
    }
