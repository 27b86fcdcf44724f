"""Linux's own 9P client, in User-Mode Linux, which reaches this machine over TCP. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.network.namespace import ip
from tests.vhost_user.harness import serving
from tests.vhost_user.linux_guest import Guest, make_initramfs, uml, uml_module

from powervio.devices.net import NetDevice
from powervio.network.tap import TapPort

HERE = "10.9.0.1"
"""This machine, for the guest."""
_MODULES = ("failover", "net_failover", "virtio_net", "netfs", "fscache", "9pnet", "9pnet_fd", "9p")


def make_network() -> None:
    """In the thread's own network namespace (`isolated`): the interface by which guests reach `HERE`."""
    ip("tuntap", "add", "uml0", "mode", "tap")
    ip("addr", "add", f"{HERE}/24", "dev", "uml0")
    ip("link", "set", "uml0", "up")
    ip("link", "set", "lo", "up")


def mounting(port: int, options: str, where: str = "/mnt") -> str:
    """The command that mounts what is served at a port."""
    return f"mount -t 9p -o trans=tcp,port={port},version=9p2000.L,{options} {HERE} {where}"


@contextmanager
def kernel_client(folder: Path, script: str) -> Iterator[Guest]:
    """A guest that runs a script of busybox's shell, in the network of `make_network`."""
    device = NetDevice(TapPort("uml0"), mac=bytes.fromhex("525400123456"))
    archive = make_initramfs(
        folder, f"ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up\n{script}", [uml_module(name) for name in _MODULES]
    )
    with serving(folder, device) as back, uml(folder, archive, f"virtio_uml.device={back.path}:1") as guest:
        yield guest
