"""A trunk port of the switch as the Shared Ethernet Adapter has it, when both are in one process."""

from __future__ import annotations

from collections.abc import Callable

from powervio.network.switch import Switch, SwitchPort


class SwitchTrunk:
    """What may be asked of the switch for a trunk port; see `sea.TrunkControl`."""

    def __init__(self, port: SwitchPort) -> None:
        self.on_change: Callable[[], None] | None = None
        """Called, from any thread, when the switch has changed which VLANs it is the active trunk of."""
        self._port = port
        port.on_active = self._changed

    def _changed(self, _: frozenset[int]) -> None:
        if self.on_change is not None:
            self.on_change()

    def activate(self) -> None:
        """See `TrunkControl`."""
        self._port.switch.activate(self._port)

    def release(self) -> None:
        """See `TrunkControl`: another one takes its place if it can."""
        if not self._port.closed:
            self._port.switch.deactivate(self._port)

    def is_active(self) -> bool:
        """See `TrunkControl`."""
        return self._port.options.pvid in self._port.active


def clients_of(switch: Switch) -> list[tuple[int, bytes]]:
    """VLAN and address of all that is at the switch, but for what is behind trunks."""
    found = [
        (vlan, port.mac)
        for port in switch.ports
        if port.mac is not None and not port.options.trunk
        for vlan in (port.options.pvid, *port.options.vlans)
    ]
    return found + [(vlan, mac) for vlan, mac, port in switch.learnt() if not port.options.trunk]
