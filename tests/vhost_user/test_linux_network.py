"""User-Mode Linux: the virtio_net driver of a real kernel on our network device, with a TAP at the other end."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest
from tests.network.namespace import ip, isolated
from tests.vhost_user.harness import recorded_sessions, serving
from tests.vhost_user.linux_guest import make_initramfs, uml, uml_module

from powervio.devices.net import NetDevice
from powervio.network.tap import TapPort
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.virtio import features as feature
from powervio.virtio import net

LIMIT = 60
MODULES = ("failover", "net_failover", "virtio_net")
SCRIPT = """
echo "MAC $(cat /sys/class/net/eth0/address) MTU $(cat /sys/class/net/eth0/mtu)"
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
echo "LINK $(cat /sys/class/net/eth0/carrier)"
ping -c 3 10.9.0.1 | grep received
nc 10.9.0.1 5000 </dev/null >/tmp/got && echo "GOT $(md5sum </tmp/got)"
nc 10.9.0.1 5001 </tmp/got && echo SENT
ping -c 2 -s 3000 10.9.0.1 | grep received
"""


class Peer:
    """Two TCP servers of one connection each: one sends, the other receives. In the calling thread's namespace."""

    def __init__(self, data: bytes) -> None:
        self.received = b""
        self._servers = [socket.create_server(("10.9.0.1", port)) for port in (5000, 5001)]
        self._threads = [
            threading.Thread(target=self._send, args=(data,), daemon=True),
            threading.Thread(target=self._receive, daemon=True),
        ]
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.settimeout(LIMIT)
            thread.start()

    def _send(self, data: bytes) -> None:
        with self._servers[0].accept()[0] as connection:
            connection.sendall(data)

    def _receive(self) -> None:
        with self._servers[1].accept()[0] as connection:
            while piece := connection.recv(65536):
                self.received += piece

    def close(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
        for server in self._servers:
            server.close()


@pytest.mark.parametrize("packed", [False, True])
@isolated
def test_linux_talks_to_linux_through_a_tap(tmp_path: Path, packed: bool) -> None:
    ip("tuntap", "add", "uml0", "mode", "tap")
    ip("addr", "add", "10.9.0.1/24", "dev", "uml0")
    ip("link", "set", "uml0", "mtu", "1400", "up")
    port = TapPort("uml0")
    data = os.urandom(3 << 20)
    peer = Peer(data)
    device = NetDevice(port, mac=bytes.fromhex("525400123456"), pairs=2)
    archive = make_initramfs(tmp_path, SCRIPT, [uml_module(name) for name in MODULES])
    sessions = recorded_sessions(device)
    with (
        serving(tmp_path, device, BackEndOptions(packed=packed)) as back,
        uml(tmp_path, archive, f"virtio_uml.device={back.path}:1") as guest,
    ):
        console = guest.finish()
        peer.close()
        assert back.server.failures == [], console
        back.call(device.close)
    assert "MAC 52:54:00:12:34:56 MTU 1400" in console
    assert "LINK 1" in console
    assert "3 packets transmitted, 3 packets received" in console
    assert "2 packets transmitted, 2 packets received" in console
    assert f"GOT {hashlib.md5(data).hexdigest()}" in console
    assert "SENT" in console
    assert peer.received == data
    wanted = net.F_CSUM | net.F_GUEST_CSUM | net.F_MRG_RXBUF | net.F_MTU | net.F_MAC | net.F_STATUS
    wanted |= net.F_HOST_TSO4 | net.F_HOST_TSO6 | net.F_GUEST_TSO4 | net.F_GUEST_TSO6
    wanted |= net.F_CTRL_VQ | net.F_CTRL_RX | net.F_CTRL_VLAN | net.F_CTRL_MAC_ADDR | net.F_MQ
    assert sessions[0] & wanted == wanted
    assert device.control.commands > 0
    assert device.control.refused == 0
    assert bool(sessions[0] & feature.RING_PACKED) is packed
    assert device.from_driver.dropped == {}
    assert device.from_driver.bytes > len(data)
    assert set(device.to_driver.dropped) <= {"no driver", "filtered"}  # what Linux does not want it says
