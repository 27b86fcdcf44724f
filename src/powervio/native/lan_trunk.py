"""A trunk adapter of a VIO server's partition as a Shared Ethernet Adapter has it (`network/sea.py: TrunkControl`)."""

from __future__ import annotations

from collections.abc import Callable

from powervio.native.lan_client import LanPort


class LanTrunk:
    """What may be asked of the hypervisor for a trunk adapter; in the partition's thread."""

    def __init__(self, port: LanPort) -> None:
        self.on_change: Callable[[], None] | None = None
        """Called when it became the active trunk adapter of its VLANs, or is not any more."""
        self._port = port
        port.on_active = self._changed

    def _changed(self, _: bool) -> None:
        if self.on_change is not None:
            self.on_change()

    def activate(self) -> None:
        """See `TrunkControl`. Raises `HcallError`."""
        self._port.activate()

    def release(self) -> None:
        """See `TrunkControl`: PAPR has no call for it, so it is the active one until another one is activated."""

    def is_active(self) -> bool:
        """See `TrunkControl`."""
        self._port.look()
        return self._port.active

    def clients(self) -> list[tuple[int, bytes]]:
        """VLAN and address of all adapters in its VLANs; nothing while it is not active. Raises `HcallError`."""
        return self._port.scan() if self.is_active() else []
