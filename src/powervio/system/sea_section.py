"""`[[sea]]`: Shared Ethernet Adapters, from their options to what a VIO server has to make."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from powervio.errors import LocalError
from powervio.network import tun
from powervio.network.sea_wire import MAX_TRUNKS
from powervio.network.switch import DEFAULT_NAME, MAX_PRIORITY, MAX_VLAN
from powervio.system.net_section import SwitchName, Vlan

CONTROL = MAX_VLAN
"""VLAN of the control channels, unless said otherwise."""
MODES = ("auto", "sharing", "standby", "forced")


class Sea(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[[sea]]`: a Shared Ethernet Adapter, by which VLANs of one of the hypervisor's switches reach a real network.
    Two of the same VLANs in different VIO servers are a pair: one bridges, and the other when that cannot. It takes
    root."""

    vios: str
    """Name of the VIO server."""
    uplink: str | list[str]
    """The interface of the host by which it reaches the network; several are one by link aggregation. What else uses
    the interface goes on as before."""
    name: Annotated[str, Meta(min_length=1, max_length=31, pattern="^[!-~]*$")] | None = None
    """What `powervio sea` calls it: "ent" and its number in the file if it is not given."""
    netns: str | None = None
    """Network namespace of the interfaces; the host's own if it is not given."""
    switch: SwitchName = DEFAULT_NAME
    """Which switch."""
    pvid: Vlan = 1
    """The VLAN whose frames have no tag at the uplink."""
    vlans: list[Vlan] = field(default_factory=list)
    """Further VLANs, whose frames have their tags there."""
    priority: Annotated[int, Meta(ge=1, le=MAX_PRIORITY)] = 1
    """Of a pair, the one with the lower number bridges if it can."""
    mode: Literal["auto", "sharing", "standby"] = "auto"
    """"sharing": each of a pair bridges every second VLAN while both can. "standby": it bridges only while the other
    cannot. `powervio sea` changes it in the running system."""
    control: Vlan = CONTROL
    """VLAN of the switch by which the two of a pair hear of each other; nobody else may be in it."""
    bond: Literal["802.3ad", "active-backup"] | None = None
    """With several uplinks: LACP with the network's switch, which is what is done if it is not given, or one in use."""
    primary: str | None = None
    """With "active-backup", the uplink that is used whenever it has a link."""

    @property
    def uplinks(self) -> list[str]:
        """All."""
        return [self.uplink] if isinstance(self.uplink, str) else self.uplink

    @property
    def all_vlans(self) -> list[int]:
        """All, in order."""
        return sorted({self.pvid, *self.vlans})


class TrunkPlan(Struct):
    """A trunk adapter."""

    pvid: int
    vlans: list[int]


class SeaPlan(Struct):
    """What a VIO server has to know of one, whatever process it is in."""

    name: str
    pair: int
    alone: bool
    address: str
    """Of the control channel, in hexadecimal digits."""
    declared: Sea
    trunks: list[TrunkPlan]


def plans(seas: Sequence[Sea], address: str) -> list[SeaPlan]:
    """Of all adapters of a system; the addresses begin with these eight hexadecimal digits."""
    groups: dict[tuple[object, ...], list[Sea]] = {}
    for sea in seas:
        groups.setdefault(_group(sea), []).append(sea)
    pairs = list(groups)
    found = []
    for number, sea in enumerate(seas):
        group = _group(sea)
        if any(other.mode == "sharing" for other in groups[group]):  # both have the same trunks
            trunks = [TrunkPlan(vlan, []) for vlan in sea.all_vlans]
        else:
            trunks = [TrunkPlan(sea.pvid, sorted(sea.vlans))]
        found.append(
            SeaPlan(
                sea.name or f"ent{number}",
                pairs.index(group) + 1,
                len(groups[group]) == 1,
                f"{address}{number + 1:04x}",
                sea,
                trunks,
            )
        )
    return found


def _group(sea: Sea) -> tuple[object, ...]:
    return sea.switch, sea.pvid, tuple(sea.all_vlans)


def problems(seas: Sequence[Sea], servers: set[str]) -> Iterator[str]:
    """What is wrong with adapters, each as `sea[N].option: what; what was expected`."""
    names: dict[str, int] = {}
    uplinks: dict[tuple[str | None, str], int] = {}
    for number, sea in enumerate(seas):
        where = f"sea[{number}]"
        if servers and sea.vios not in servers:
            yield f'{where}.vios: "{sea.vios}" is not one of the VIO servers ({", ".join(sorted(servers))})'
        name = sea.name or f"ent{number}"
        other = names.setdefault(name, number)
        if other != number:
            yield f"{where}.name: {name} is the name of sea[{other}] already"
        for uplink in sea.uplinks:
            try:
                tun.check_name(uplink)
            except LocalError as error:
                yield f"{where}.uplink: {error}"
            other = uplinks.setdefault((sea.netns, uplink), number)
            if other != number:
                yield f"{where}.uplink: {uplink} is that of sea[{other}] already"
        yield from _own_problems(where, sea)
        for at, before in enumerate(seas[:number]):
            yield from _pair_problems(where, sea, f"sea[{at}]", before)


def _own_problems(where: str, sea: Sea) -> Iterator[str]:
    if not 1 <= len(set(sea.uplinks)) == len(sea.uplinks) <= 8:
        yield f"{where}.uplink: {len(sea.uplinks)} interfaces; expected 1 to 8, each once"
    if sea.pvid in sea.vlans or len(set(sea.vlans)) != len(sea.vlans):
        yield f"{where}.vlans: {sea.vlans} with pvid = {sea.pvid}; expected each VLAN once"
    if sea.control in sea.all_vlans:
        yield f"{where}.control: VLAN {sea.control} is one that it bridges; expected another one"
    if sea.mode == "sharing" and len(sea.all_vlans) > MAX_TRUNKS:
        yield f"{where}.vlans: {len(sea.all_vlans)} VLANs; two that share have {MAX_TRUNKS} at most"
    if sea.bond is not None and len(sea.uplinks) < 2:
        yield f"{where}.bond: it is about several uplinks; there is one"
    if sea.primary is not None and (sea.bond != "active-backup" or sea.primary not in sea.uplinks):
        yield f'{where}.primary: {sea.primary}; expected one of several uplinks, with bond = "active-backup"'
    if os.geteuid():
        yield f"{where}.uplink: to have all frames of an interface takes root (CAP_NET_RAW)"


def _pair_problems(where: str, sea: Sea, there: str, other: Sea) -> Iterator[str]:
    if sea.switch != other.switch or not set(sea.all_vlans) & set(other.all_vlans):
        return
    if _group(sea) != _group(other):
        yield f"{where}.vlans: some are also those of {there}; expected all of them, with the same pvid, or none"
    elif sea.vios == other.vios:
        yield f"{where}.vios: {there} is in {other.vios} too; the two of a pair are in different VIO servers"
    elif sea.priority == other.priority:
        yield f"{where}.priority: {there} has {other.priority} too; the two of a pair have different ones"
    elif sea.control != other.control:
        yield f"{where}.control: {there} has VLAN {other.control}; the two of a pair have the same"
