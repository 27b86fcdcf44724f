"""`[[lpar.net]]`: virtual Ethernet, from its options to both ends: a port of a switch, a TAP in a namespace."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_interface
from typing import Annotated, Any, Protocol

from msgspec import Meta, field

from powervio.attach.rtnetlink import Address, Interface
from powervio.attach.tap import TapAttachment, TapOptions
from powervio.devices.net import NetDevice
from powervio.devices.net_relay import Relay
from powervio.drivers.net import NetDriver
from powervio.errors import LocalError
from powervio.network import tun
from powervio.network.switch import DEFAULT_NAME, MAX_VLAN, PortOptions, Switch
from powervio.system.section import AdapterSection
from powervio.virtio import net

_NAMESPACE = re.compile(r"[A-Za-z0-9_.@:+-]{1,63}")

Vlan = Annotated[int, Meta(ge=1, le=MAX_VLAN)]


SwitchName = Annotated[str, Meta(min_length=1, max_length=63, pattern="^[ -~]*$")]
Mtu = Annotated[int, Meta(ge=net.MIN_MTU, le=net.MAX_MTU)]
Rate = Annotated[int, Meta(ge=1000, le=1 << 40)]
Burst = Annotated[int, Meta(ge=1, le=1 << 40)]


class SwitchPortOptions(Protocol):
    """What a section says of its port of a switch. (A Struct has one base only, so each section has these fields.)"""

    switch: str
    pvid: int
    vlans: list[int]
    mac: str | None
    spoof_check: bool
    mtu: int
    rate: int | None
    burst: int | None


class Net(AdapterSection):
    """`[[lpar.net]]`: a network adapter of a client at one of the hypervisor's switches, as a TAP interface of the
    host. It takes root."""

    switch: SwitchName = DEFAULT_NAME
    """Which switch; adapters at switches of different names are on networks of their own."""
    pvid: Vlan = 1
    """The port's VLAN: that of frames without a tag."""
    vlans: list[Vlan] = field(default_factory=list)
    """Further VLANs, whose frames the client sends and gets with their tags (`ip link add link eth0 name eth0.20 type
    vlan id 20`)."""
    netns: str | None = None
    """Network namespace of the interface, as `ip netns` has them; it is made if it is not there, and removed at the end
    if it was made. The host's own if it is not given."""
    tap: str | None = None
    """Name of the interface; without it the adapter is there and no program has it."""
    address: str | list[str] = field(default_factory=list)
    """Addresses of the interface, each with the length of its network's prefix, such as "192.0.2.1/24"."""
    gateway: str | list[str] = field(default_factory=list)
    """Where everything goes that is on none of its networks; one IPv4 and one IPv6 address at most."""
    mac: str | None = None
    """Hardware address; one that is made from the names of system and client if it is not given, and stays the same."""
    spoof_check: bool = True
    """Whether frames with another source address than the adapter's are dropped; a bridge behind it needs it off."""
    mtu: Mtu = 1500
    """Bytes of the largest frame without its Ethernet header."""
    offloads: bool = True
    """Whether large frames cross as one, with checksums that are finished only where they leave for a real network."""
    rate: Rate | None = None
    """Bytes a second that the client may send; what is over waits in the interface or is dropped."""
    burst: Burst | None = None
    """Bytes that may go at once after a pause; a tenth of a second's worth if it is not given."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is: what is not in its options."""

    system: str
    """Name of the system."""
    client: str
    """Name of the partition."""
    number: int
    """Of the section at the client, from 0."""
    switch: Callable[[str], Switch]
    """The hypervisor's switch of a name, made when it is first asked for."""
    relay: Callable[[str], Relay]
    """Of the device's VIO server and the switch of a name, made likewise."""


def names(value: str | list[str]) -> list[str]:
    """An option that is one or several."""
    return [value] if isinstance(value, str) else value


def addresses(declared: Any) -> list[Interface]:
    """Raises `LocalError`."""
    found: list[Interface] = []
    for text in names(declared.address):
        if "/" not in text:
            raise LocalError(f'"{text}" has no prefix length; expected an address such as "192.0.2.1/24"')
        try:
            found.append(ip_interface(text))
        except ValueError:
            raise LocalError(
                f'"{text}" is no address; expected one such as "192.0.2.1/24" or "2001:db8::1/64"'
            ) from None
    return found


def gateways(declared: Any) -> list[Address]:
    """Raises `LocalError`."""
    try:
        return [ip_address(text) for text in names(declared.gateway)]
    except ValueError as error:
        raise LocalError(f"{error}; expected an address without a prefix length") from None


def hardware_address(declared: Any, place: Place) -> bytes:
    """The adapter's: the same whenever its VIO server boots."""
    return address_of(declared, f"{place.system}\0{place.client}\0{place.number}")


def address_of(declared: SwitchPortOptions, seed: str) -> bytes:
    """The one that was declared, or one that is made from names."""
    if declared.mac is not None:
        return net.parse_mac(declared.mac)
    mac = bytearray(hashlib.sha256(seed.encode()).digest()[: net.MAC_BYTES])
    mac[0] = mac[0] & 0xFC | 2  # locally administered, of one device
    return bytes(mac)


def make_device(declared: Any, place: Place) -> NetDevice:
    """The device at a port of its switch. Raises `LocalError`."""
    name, mac = f"{place.client}.{place.number}", hardware_address(declared, place)
    return device_at_port(declared, name, mac, place.switch, relay=place.relay(declared.switch))


def device_at_port(
    declared: SwitchPortOptions, name: str, mac: bytes, switch: Callable[[str], Switch], **options: Any
) -> NetDevice:
    """A device at a port of its switch; `options` are further ones of `NetDevice`. Raises `LocalError`."""
    port = PortOptions(
        name=name,
        pvid=declared.pvid,
        vlans=tuple(declared.vlans),
        mac=mac if declared.spoof_check else None,
        rate=declared.rate or 0,
        burst=declared.burst or 0,
        mtu=declared.mtu,
    )
    return NetDevice(switch(declared.switch).add(port), mac=mac, mtu=declared.mtu, **options)


def make_driver(declared: Any) -> NetDriver:
    """The client's side."""
    return NetDriver(offloads=declared.offloads)


def attach(declared: Any, driver: NetDriver, place: Place) -> list[TapAttachment]:
    """The interface. Raises `LocalError`."""
    if declared.tap is None:
        return []
    options = TapOptions(
        declared.tap,
        declared.netns,
        tuple(addresses(declared)),
        tuple(gateways(declared)),
        owner=place.system,
    )
    return [TapAttachment(options, driver)]


def problems(declared: Any) -> list[str]:
    """What is wrong with the options, each as `option: what; what was expected`."""
    return list(_problems(declared))


_PARSERS: dict[str, Callable[[Any], object]] = {
    "tap": lambda declared: tun.check_name("eth0" if declared.tap is None else declared.tap),
    "mac": lambda declared: net.parse_mac("02:00:00:00:00:00" if declared.mac is None else declared.mac),
    "address": addresses,
    "gateway": gateways,
}


def _problems(declared: Any) -> Iterator[str]:
    for option, parse in _PARSERS.items():
        try:
            parse(declared)
        except LocalError as error:
            yield f"{option}: {error}"
            return
    if declared.netns is not None and (not _NAMESPACE.fullmatch(declared.netns) or declared.netns in (".", "..")):
        yield f'netns: "{declared.netns}" cannot be the name of a namespace; expected letters, digits and "_.@:+-"'
    yield from port_problems(declared)
    if declared.tap is None:
        for option in ("netns", "address", "gateway"):
            if getattr(declared, option):
                yield f"{option}: it is about an interface; expected tap beside it"
    yield from _network_problems(declared)
    if declared.socket is not None:
        yield "socket: programs use a network adapter by its interface; expected tap"


def port_problems(declared: SwitchPortOptions) -> Iterator[str]:
    """What is wrong with the options of a port, but for its hardware address."""
    if declared.pvid in declared.vlans:
        yield f"vlans: {declared.pvid} is the pvid, whose frames have no tag; expected others"
    if len(set(declared.vlans)) != len(declared.vlans):
        yield "vlans: one is there twice"
    if declared.burst is not None and declared.rate is None:
        yield "burst: it limits nothing without rate"


def _network_problems(declared: Any) -> Iterator[str]:
    mine = addresses(declared)
    for address in mine:
        if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
            if address.ip in (address.network.network_address, address.network.broadcast_address):
                yield f"address: {address} is the network's own or its broadcast address; expected one between"
        elif isinstance(address.ip, IPv6Address) and declared.mtu < 1280:
            yield f"mtu: {declared.mtu}; IPv6 needs 1280 or more"
    if len(set(mine)) != len(mine):
        yield "address: one is there twice"
    found = gateways(declared)
    for kind in (IPv4Address, IPv6Address):
        if sum(isinstance(gateway, kind) for gateway in found) > 1:
            yield f"gateway: there are two of the same kind ({', '.join(map(str, found))}); expected one"
    for gateway in found:
        if not any(gateway in address.network for address in mine) and not gateway.is_link_local:
            yield f"gateway: {gateway} is on none of the interface's networks; expected an address that it reaches"
