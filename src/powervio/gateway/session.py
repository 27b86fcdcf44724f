"""One process behind a door: its region, its eventfds, its ring of hcalls, and the hcalls of the gateway itself (G7).

A session ends with its socket. Everything here is called in the gateway's thread.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable

from powervio.gateway import layout
from powervio.gateway.layout import Layout
from powervio.gateway.mailbox import Mailbox
from powervio.gateway.shared_tables import SharedTables
from powervio.memory.area import MappedArea
from powervio.memory.hw import event_signal
from powervio.papr.codes import ReturnCode
from powervio.phyp.partition import Partition

_log = logging.getLogger(__name__)

_SUCCESS = (int(ReturnCode.H_SUCCESS),)
_PARAMETER = (int(ReturnCode.H_PARAMETER),)
_FUNCTION = (int(ReturnCode.H_FUNCTION),)
_P2 = (int(ReturnCode.H_P2),)
_NO_ROOM = (int(ReturnCode.H_NOT_ENOUGH_RESOURCES),)
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Session:
    """What a partition's process and the hypervisor share, from the first descriptor to the last."""

    def __init__(self, partition: Partition, where: Layout) -> None:
        """Make region and eventfds anew, so that nothing of an earlier process reaches into this session."""
        self.partition = partition
        self.where = where
        self._port = partition.port
        self.region = MappedArea.create(f"powervio-gateway-{partition.name}", where.region_size)
        where.write(self.region.view)
        self.doorbell = _eventfd()
        self._call = _eventfd()
        self._sources = [_eventfd() for _ in range(where.vectors - layout.FIRST_SOURCE_VECTOR)]
        self._accepted = 0
        self._generation = 0
        """Of the device tree that is in the region."""
        self.tables = SharedTables(partition, self.region.view[where.tce_offset : where.tce_offset + where.tce_room])
        self.mailbox = Mailbox(self.region.view, where, self.hcall)
        self._own: dict[int, Callable[..., tuple[int, ...]]] = {
            layout.G_FEATURES: self._features,
            layout.G_TREE: self._tree,
            layout.G_DIRECT: self._direct,
        }
        self._closed = False
        self._publish_tree()

    @property
    def vectors(self) -> list[int]:
        """The partition's eventfds, vector by vector; the second is its external interrupt line itself."""
        return [self._call, self.partition.interrupts.fd, *self._sources]

    def turn(self, limit: int) -> bool:
        """Answer at most `limit` hcalls; whether there are more."""
        more, wake = self.mailbox.turn(limit)
        if wake:
            event_signal(self._call)
        return more

    @property
    def usable(self) -> bool:
        """Whether the partition is there and has all of its memory."""
        return self.partition.alive and not self.partition.area.lost

    def hcall(self, token: int, *registers: int) -> tuple[int, ...]:
        """phyp's table, and beside it what only a partition behind a gateway needs."""
        own = self._own.get(token)
        return self._port.hcall(token, *registers) if own is None else own(*registers)

    # -- hcalls of the gateway

    def _features(self, accepted: int, *_: int) -> tuple[int, ...]:
        if accepted & ~self.where.features:
            return _PARAMETER
        self._accepted = accepted
        _U64.pack_into(self.region.view, layout.ACCEPTED, accepted)
        if accepted & layout.FEATURE_SHARED_TCE:
            self.tables.update()
        else:
            self.tables.give_back()
        return 0, accepted

    def _tree(self, *_: int) -> tuple[int, ...]:
        length = self._publish_tree()
        if self._accepted & layout.FEATURE_SHARED_TCE:
            self.tables.update()
        return (0, self._generation, length) if length else _NO_ROOM

    def _publish_tree(self) -> int:
        """Put the tree as it is into the region and watch for the next change; its length, 0 if there is no room.

        The tree may be newer than its generation says: then the change that made it so is told of once more.
        """
        generation = self._port.watch_tree()
        view = self.region.view
        if generation != self._generation:
            blob = self.partition.hypervisor.device_tree(self.partition)
            if len(blob) > self.where.tree_room:
                _log.error("partition %s: a device tree of %d bytes is too large", self.partition.name, len(blob))
                return 0
            view[self.where.tree_offset : self.where.tree_offset + len(blob)] = blob
            _U64.pack_into(view, layout.TREE_GENERATION, generation)
            _U32.pack_into(view, layout.TREE_LENGTH, len(blob))
            self._generation, self._tree_length = generation, len(blob)
        return self._tree_length

    _tree_length = 0

    def _direct(self, source: int, vector: int, *_: int) -> tuple[int, ...]:
        if not self._accepted & layout.FEATURE_DIRECT:
            return _FUNCTION
        if vector == layout.LINE_VECTOR:
            fd = -1
        elif layout.FIRST_SOURCE_VECTOR <= vector < self.where.vectors:
            fd = self._sources[vector - layout.FIRST_SOURCE_VECTOR]
        else:
            return _P2
        with self.partition.hypervisor.lock:
            return _SUCCESS if self.partition.interrupts.direct(source, fd) else _PARAMETER

    def close(self) -> None:
        """Nothing that is posted is taken from here on; the partition is what it was. Once."""
        if self._closed:
            return
        self._closed = True
        with self.partition.hypervisor.lock:
            self.partition.interrupts.direct_back()
        self.tables.close()
        _U32.pack_into(self.region.view, layout.STATE, layout.ENDED)
        for fd in (self.doorbell, self._call, *self._sources):
            os.close(fd)
        self._own.clear()
        del self.mailbox
        self.region.close()


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
