"""`[[port]]`: ports of the hypervisor's switches for virtual machines of anybody, by vhost-user.

A machine's network adapter is served from a socket, in one thread for all such ports; between two of them frames go
from ring to ring without the interpreter lock (`devices/net_loop`), and to and from clients of VIO servers by the
switch. No partition is involved: what is at the other end shares its memory with this process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from powervio.attach.unix_socket import UnixListener
from powervio.devices.net import NetDevice
from powervio.devices.net_loop import Forwarder
from powervio.errors import LocalError
from powervio.network.switch import DEFAULT_NAME, Switch, SwitchPort
from powervio.system.net_section import (
    Burst,
    Mtu,
    Rate,
    SwitchName,
    Vlan,
    address_of,
    device_at_port,
    port_problems,
)
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.server import Server
from powervio.virtio.net import format_mac, parse_mac

_END_LIMIT = 10.0
"""Seconds for what the thread is doing."""


class MachinePort(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[[port]]`: a port of a switch for a virtual machine that somebody else runs, by vhost-user."""

    name: Annotated[str, Meta(min_length=1, max_length=63, pattern="^[ -~]*$")]
    """No other port may have it."""
    socket: str
    """Path of the Unix socket at which the machine finds its adapter; relative to the system file."""
    switch: SwitchName = DEFAULT_NAME
    """Which switch."""
    pvid: Vlan = 1
    """The port's VLAN: that of frames without a tag."""
    vlans: list[Vlan] = field(default_factory=list)
    """Further VLANs, whose frames the machine sends and gets with their tags."""
    mac: str | None = None
    """Hardware address; one that is made from the names of system and port if it is not given. Front ends such as QEMU
    have to be given the same."""
    spoof_check: bool = True
    """Whether frames with another source address than that are dropped."""
    mtu: Mtu = 1500
    """Bytes of the largest frame without its Ethernet header."""
    rate: Rate | None = None
    """Bytes a second that the machine may send; what is over is dropped."""
    burst: Burst | None = None
    """Bytes that may go at once after a pause; a tenth of a second's worth if it is not given."""


def problems(ports: Sequence[MachinePort]) -> Iterator[str]:
    """What is wrong with ports, each as `port[N].option: what; what was expected`."""
    names: dict[str, int] = {}
    for number, port in enumerate(ports):
        where = f"port[{number}]"
        other = names.setdefault(port.name, number)
        if other != number:
            yield f'{where}.name: "{port.name}" is the name of port[{other}] already'
        try:
            if port.mac is not None:
                parse_mac(port.mac)
        except LocalError as error:
            yield f"{where}.mac: {error}"
        for problem in port_problems(port):
            yield f"{where}.{problem}"


@dataclass(slots=True)
class _Served:
    declared: MachinePort
    device: NetDevice
    server: Server | None = None


class MachinePorts:
    """All of a system."""

    def __init__(self, declared: Sequence[MachinePort], system: str, switch: Callable[[str], Switch]) -> None:
        """`switch` is the hypervisor's of a name. Nothing is served before `start`."""
        self._declared = declared
        self._system = system
        self._switch = switch
        self._served: list[_Served] = []
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._undo = ExitStack()

    def start(self) -> None:
        """Listen, and serve in a thread. Raises `LocalError`; nothing is left then."""
        try:
            self._start()
        except BaseException:
            self._undo.close()
            raise

    def _start(self) -> None:
        self._loop = loop = Loop()
        self._undo.callback(loop.close)
        forwarders: dict[str, Forwarder] = {}
        for port in self._declared:
            switch = self._switch(port.switch)
            if port.switch not in forwarders:
                forwarders[port.switch] = forwarder = Forwarder(switch)
                self._undo.callback(forwarder.close)
            mac = address_of(port, f"{self._system}\0port\0{port.name}")
            device = device_at_port(port, port.name, mac, self._switch, forwarder=forwarders[port.switch])
            self._undo.callback(device.close)
            listener = UnixListener(port.socket)
            self._undo.callback(listener.close)
            server = Server(device, loop, listener.socket, BackEndOptions())
            self._undo.callback(server.close)
            self._served.append(_Served(port, device, server))
        self._thread = threading.Thread(target=loop.run, name="machine-ports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect the machines; nothing is served any more. Raises `LocalError` when the thread does not end."""
        if self._loop is not None and self._thread is not None:
            self._loop.stop()
            self._thread.join(_END_LIMIT)
            if self._thread.is_alive():
                raise LocalError(f"the ports of virtual machines did not end within {_END_LIMIT:.0f} s")
            self._thread = None
        self._served = []
        self._undo.close()

    def entries(self) -> list[dict[str, Any]]:
        """What `powervio ps` shows of each."""
        found = []
        for served in self._served:
            declared, port = served.declared, served.device.port
            assert isinstance(port, SwitchPort)
            counters = port.counters()
            found.append(
                {
                    "name": declared.name,
                    "switch": declared.switch,
                    "pvid": declared.pvid,
                    "vlans": list(declared.vlans),
                    "socket": declared.socket,
                    "mac": format_mac(served.device.mac),
                    "attached": served.device.session is not None,
                    "sent": counters.sent,
                    "sent_bytes": counters.sent_bytes,
                    "received": counters.received,
                    "received_bytes": counters.received_bytes,
                    "dropped": dict(counters.dropped),
                }
            )
        return found
