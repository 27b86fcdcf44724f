"""What `entstat` says of a Shared Ethernet Adapter, in its words."""

from __future__ import annotations

from dataclasses import dataclass

from powervio.network.sea import Sea, SideCounters
from powervio.network.sea_wire import Kind, Mode


@dataclass(frozen=True, slots=True)
class SeaReport:
    """All that can be seen of one, as plain values."""

    name: str
    state: str
    bridge_mode: str
    mode: str
    priority: int
    healthy: bool
    partner: str
    """Address of the other's control channel, "" while none is alive."""
    trunks: list[dict[str, object]]
    real: dict[str, object]
    virtual: dict[str, object]
    control: dict[str, int]
    """Messages by kind, and what was dropped, by reason."""
    control_sent: int
    became_primary: int
    became_backup: int
    announced: int


def _side(side: SideCounters) -> dict[str, object]:
    return {
        "received": side.received,
        "bridged": side.bridged,
        "transmitted": side.transmitted,
        "dropped": dict(side.dropped),
    }


def report(sea: Sea) -> SeaReport:
    """How it is now; in its thread."""
    failover = sea.failover
    peer = failover.peer
    trunks = list(failover.trunks.values())
    vlans = {trunk.pvid: sorted(trunk.vlans) for trunk in sea.trunks}
    return SeaReport(
        name=sea.options.name,
        state=failover.state,
        bridge_mode=failover.bridge_mode,
        mode=failover.mode.name.lower(),
        priority=failover.options.priority,
        healthy=failover.healthy,
        partner=peer.message.sender.hex(":") if peer is not None and failover.is_alive else "",
        trunks=[
            {
                "pvid": trunk.pvid,
                "vlans": vlans[trunk.pvid],
                "state": trunk.state.name,
                "previous": trunk.before.name,
                "active": trunk.state.bridges,
            }
            for trunk in trunks
        ],
        real=_side(sea.real),
        virtual=_side(sea.virtual),
        control=dict(failover.received),
        control_sent=failover.sent,
        became_primary=sum(trunk.became_primary for trunk in trunks),
        became_backup=sum(trunk.became_backup for trunk in trunks),
        announced=sea.announced,
    )


def entstat(of: SeaReport) -> str:
    """The text, as far as it has something to say here."""
    control = of.control
    kinds = {kind.name for kind in Kind}
    lines = [
        f"ETHERNET STATISTICS ({of.name}) :",
        "Device Type: Shared Ethernet Adapter",
        "",
        f"Statistics for adapters in the Shared Ethernet Adapter {of.name}",
        "-" * 62,
        f"Number of adapters: {len(of.trunks) + 1}",
        "VLAN IDs :",
    ]
    for trunk in of.trunks:
        tagged = trunk["vlans"]
        assert isinstance(tagged, list)
        lines.append(f"    {trunk['pvid']}: {' '.join(map(str, [trunk['pvid'], *tagged]))}")
    for title, side in (("Real", of.real), ("Virtual", of.virtual)):
        dropped = side["dropped"]
        assert isinstance(dropped, dict)
        lines += [
            f"{title} Side Statistics:",
            f"    Packets received: {side['received']}",
            f"    Packets bridged: {side['bridged']}",
            f"    Packets transmitted: {side['transmitted']}",
            f"    Packets dropped: {sum(dropped.values())}",
        ]
    received = sum(number for kind, number in control.items() if kind in kinds)
    lines += [
        "High Availability Statistics:",
        f"    Control Packets in: {received}",
        f"    Control Packets out: {of.control_sent}",
        "    Type of Packets Received:",
        f"        Keep-Alive Packets: {control.get(Kind.KEEP_ALIVE.name, 0)}",
        f"        Recovery Packets: {control.get(Kind.RECOVERY.name, 0)}",
        f"        Notify Packets: {control.get(Kind.NOTIFY.name, 0)}",
        f"        Limbo Packets: {control.get(Kind.LIMBO.name, 0)}",
        f"    State: {of.state}",
        f"    Bridge Mode: {of.bridge_mode}",
        f"    Number of Times Server became Backup: {of.became_backup}",
        f"    Number of Times Server became Primary: {of.became_primary}",
        f"    High Availability Mode: {Mode[of.mode.upper()].name.capitalize()}",
        f"    Priority: {of.priority}",
    ]
    return "\n".join(lines) + "\n"
