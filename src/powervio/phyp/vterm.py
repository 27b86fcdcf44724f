"""Virtual terminals: the hypervisor-simulated pair of `vty` and `vty-server` (papr-vio 7.7).

The hypervisor keeps up to `BUFFER` bytes on the way to each end. A client's vty and a server's vty-server are connected
while the server has registered, and a server reaches only the vtys that it is configured for. Everything here runs
under the hypervisor's lock unless it says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.papr.crq import TransportEvent
from powervio.phyp.adapter import Identity, VirtualAdapter

if TYPE_CHECKING:
    from powervio.phyp.hypervisor import Hypervisor
    from powervio.phyp.partition import Partition

BUFFER = 2048
"""Bytes that wait for one end."""


class VtermAdapter(VirtualAdapter):
    """One end of a virtual terminal."""

    partner: VtermAdapter | None
    """The other end, while connected."""

    def __init__(self, partition: Partition, slot: int, name: str, device_type: str, compatible: str) -> None:
        super().__init__(
            partition,
            slot,
            name=name,
            device_type=device_type,
            compatible=(compatible,),
            window=0,
            is_server=isinstance(self, VtyServer),
        )
        self.waiting = bytearray()
        """What this end has to read."""

    @property
    def room(self) -> int:
        """Bytes that may be sent to this end now."""
        return BUFFER - len(self.waiting)

    def deliver(self, data: bytes) -> None:
        """Bytes for this end; it is interrupted when it had none."""
        was_empty = not self.waiting
        self.waiting += data
        if was_empty and data:
            self.signal()

    def disconnect(self) -> VtermAdapter | None:
        """End the connection; returns who was at the other end. What waits there can still be read."""
        partner, self.partner = self.partner, None
        if partner is not None:
            partner.partner = None
        return partner

    def stop(self) -> None:
        """See `VirtualAdapter.stop`: a partition that ends or boots loses its terminals and what waited for it."""
        super().stop()
        self.waiting.clear()
        self._left = self.disconnect()

    def notify_stopped(self, event: TransportEvent) -> None:
        """From open to closed is an interrupt (papr-vio 7.7)."""
        if self._left is not None:
            self._left.signal()
            self._left = None

    _left: VtermAdapter | None = None


class Vty(VtermAdapter):
    """A client partition's terminal."""

    def __init__(self, partition: Partition, slot: int) -> None:
        super().__init__(partition, slot, "vty", "serial", "hvterm1")


class VtyServer(VtermAdapter):
    """The end at which a server partition reads and writes a client's terminal."""

    def __init__(self, partition: Partition, slot: int) -> None:
        super().__init__(partition, slot, "vty-server", "serial-server", "hvterm2")
        self.configured: list[Vty] = []
        """The vtys that it may connect to."""

    def candidates(self) -> list[Vty]:
        """Those of running partitions, in the order in which H_VTERM_PARTNER_INFO names them."""
        alive = (vty for vty in self.configured if vty.partition.alive)
        return sorted(alive, key=lambda vty: (vty.partition.partition_id, vty.unit_address))


def create_vterm(
    hypervisor: Hypervisor,
    server: Partition,
    client: Partition,
    *,
    client_slot: int | None = None,
    client_identity: Identity | None = None,
) -> tuple[VtyServer, Vty]:
    """A vty-server and a vty that it may connect to; not under the lock. The vty is in slot 0 unless that is taken.

    `client_identity` as for `Hypervisor.create_pair`. Raises `LocalError` for a slot that is taken.
    """
    with hypervisor.lock:
        if client_slot is None:
            client_slot = next((slot for slot in (0, 1) if slot not in client.slots), None)
        with client.numbering(client_identity):
            vty = Vty(client, client.choose_slot(client_slot))
        client.add(vty)
        vty_server = VtyServer(server, server.choose_slot(None))
        server.add(vty_server)
        vty_server.configured.append(vty)
        return vty_server, vty


def remove_vterm(vty_server: VtyServer, vty: Vty) -> None:
    """Unplug both ends; not under the lock. What waits for either is gone. Harmless for ends that are gone already."""
    with vty_server.partition.hypervisor.lock:
        for end in (vty, vty_server):
            if end.partition.slots.get(end.slot) is end:
                end.stop()
                end.partition.remove(end)
        if vty in vty_server.configured:
            vty_server.configured.remove(vty)
