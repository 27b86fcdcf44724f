"""Suspending a partition: who has to be ready for it, and who waits for that (papr-vio 3.8).

FF09 goes to each server that asked for it by H_VIOCTL; the suspension goes on when each has answered
READY_FOR_SUSPEND (or is gone), and is given up when one has not in its time. The hypervisor's lock is held in every
method except `wait`, which sleeps on it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from powervio.errors import LocalError
from powervio.papr.crq import TransportEvent

if TYPE_CHECKING:
    from powervio.phyp.adapter import VioAdapter
    from powervio.phyp.partition import Partition


class SuspendAborted(LocalError):
    """The partition was not suspended and runs on; servers that had prepared for it were told."""


class Suspensions:
    """The suspensions that are under way on one hypervisor."""

    def __init__(self, lock: threading.Lock) -> None:
        self._changed = threading.Condition(lock)
        self._told: dict[int, list[VioAdapter]] = {}
        """By partition id: the servers that got FF09 and no FF0A yet."""
        self._awaited: dict[int, dict[VioAdapter, float]] = {}
        """By partition id: the servers that have not answered, with the time by which they have to."""

    def prepare(self, partition: Partition) -> None:
        """Send FF09 to the servers that want it. Raises `SuspendAborted` when a server has forbidden migration."""
        if partition.partition_id in self._told:
            return
        servers = [server for server in _partners(partition) if server.registered]
        for server in servers:
            if server.migration_disabled:
                raise SuspendAborted(
                    f"partition {partition.name}: {server.node.location_code} has disabled migration (H_VIOCTL)"
                )
        now = time.monotonic()
        told = [server for server in servers if server.prepare_msec is not None]
        self._told[partition.partition_id] = told
        self._awaited[partition.partition_id] = {
            server: now + server.prepare_msec / 1000 for server in told if server.prepare_msec is not None
        }
        for server in told:
            server.deliver(TransportEvent.PREPARE_FOR_SUSPEND)

    def ready(self, server: VioAdapter) -> None:
        """A server has quiesced, or will not answer because its queue is gone."""
        for awaited in self._awaited.values():
            awaited.pop(server, None)
        self._changed.notify_all()

    def is_ready(self, partition: Partition) -> bool:
        """Whether nobody is waited for."""
        return not self._awaited.get(partition.partition_id)

    def wait(self, partition: Partition) -> None:
        """Sleep until every server is ready; the lock is free meanwhile. Raises `SuspendAborted` after the time."""
        while awaited := self._awaited.get(partition.partition_id):
            left = min(awaited.values()) - time.monotonic()
            if left <= 0:
                late = ", ".join(server.node.location_code for server in awaited)
                self.over(partition)
                raise SuspendAborted(f"partition {partition.name}: not ready for a suspension in time: {late}")
            self._changed.wait(left)

    def over(self, partition: Partition) -> None:
        """The client runs again, or was never stopped: FF0A to whoever got FF09."""
        self._awaited.pop(partition.partition_id, None)
        for server in self._told.pop(partition.partition_id, ()):
            server.deliver(TransportEvent.CLIENT_RESUMED)

    def forget(self, partition: Partition) -> None:
        """The partition is gone."""
        self._awaited.pop(partition.partition_id, None)
        self._told.pop(partition.partition_id, None)
        self._changed.notify_all()


def _partners(partition: Partition) -> list[VioAdapter]:
    """The server ends of the partition's connections to others."""
    found = []
    for adapter in partition.adapters.values():
        partner = getattr(adapter, "partner", None)
        if partner is not None and partner.partition is not partition and partner.remote_pane is not None:
            found.append(partner)
    return found
