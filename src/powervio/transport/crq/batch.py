"""Many requests of one queue served with few calls of the hypervisor (`virtio/batch.py`).

* Headers that lie near each other at the client come in one copy, gaps included; those that came with the descriptors
  (`RemoteRing.annex`) cost nothing more.
* Data of several requests goes by redirected DMA together: one H_PUT_RTCE for all pages that follow one another, or one
  H_PUT_RTCE_INDIRECT, an engine operation for each request, one H_REMOVE_RTCE. A page that two requests share, backings
  that look at bytes, and few pages are copied instead, and so is everything when anything stands in the way.
* Status bytes that lie side by side go in one copy.

A client that wants this lays its small buffers out side by side and maps its data in turn, as `drivers/block_core.py`
and `vio/dma.py` do; it is not obliged to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing, Payload
from powervio.papr.tce import MULTI_TCE_LIMIT, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.transport.crq.redirect import Redirector
from powervio.transport.crq.remote import BOUNCE_SIZE, RdmaPayload, RemoteWindow
from powervio.transport.crq.remote_ring import RemoteRing
from powervio.virtio.batch import Batch, Piece, Transfer

REDIRECT_PAGES = 8
"""Pages from which on a group of transfers is redirected: three calls for all of it instead of one for each."""
_GAP = 1024
"""Bytes between two pieces that are copied along rather than beginning another copy."""
_SPAN = 16 * 1024
"""Bytes of one copy of small pieces, at most."""
_OFFSET = TCE_PAGE_SIZE - 1


class RdmaBatch(Batch):
    """For one queue of a client."""

    def __init__(self, window: RemoteWindow, ring: RemoteRing, redirector: Redirector | None) -> None:
        self._window = window
        self._ring = ring
        self._redirector = redirector

    # -- small things in

    def read(self, pieces: Sequence[Piece]) -> list[bytes | None]:
        """See `Batch`."""
        found: list[bytes | None] = [None] * len(pieces)
        wanted: list[tuple[int, int, int]] = []
        for number, (payload, offset, length) in enumerate(pieces):
            places = _places(payload, offset, length)
            if len(places) != 1:
                found[number] = _alone(payload, offset, length)
                continue
            address = places[0][0]
            at_hand = self._ring.at_hand(address, length)
            if at_hand is None:
                wanted.append((address, length, number))
            else:
                found[number] = at_hand
        wanted.sort()
        begin = 0
        for number in range(1, len(wanted) + 1):
            if number < len(wanted):
                last = wanted[number - 1][0] + wanted[number - 1][1]
                address, length, _ = wanted[number]
                if address - last <= _GAP and address + length - wanted[begin][0] <= _SPAN:
                    continue
            self._read_span(wanted[begin:number], found)
            begin = number
        return found

    def _read_span(self, wanted: list[tuple[int, int, int]], found: list[bytes | None]) -> None:
        start = wanted[0][0]
        try:
            if len(wanted) == 1:
                found[wanted[0][2]] = self._window.read(start, wanted[0][1])
                return
            end = max(address + length for address, length, _ in wanted)
            self._window.fetch(start, end - start, self._window.bounce)
        except RemoteError:
            if len(wanted) > 1:  # one of them, or what is between, is not mapped
                for one in wanted:
                    self._read_span([one], found)
            return
        view = self._window.bounce.view
        for address, length, number in wanted:
            found[number] = bytes(view[address - start : address - start + length])

    # -- data

    def move(self, transfers: Sequence[Transfer], backing: Backing) -> None:
        """See `Batch`."""
        redirector = self._redirector
        if redirector is None or not backing.vectored or len(transfers) == 1:
            for transfer in transfers:
                _carry_out(transfer, backing)
            return
        group: list[tuple[Transfer, list[tuple[int, int]]]] = []
        numbers: list[int] = []
        seen: set[int] = set()
        for transfer in transfers:
            places = _places(transfer.payload, transfer.offset, transfer.length)
            pages = [
                page
                for address, length in places
                for page in range(address >> TCE_PAGE_SHIFT, (address + length + _OFFSET) >> TCE_PAGE_SHIFT)
            ]
            if not pages or transfer.length >= redirector.least or not seen.isdisjoint(pages):
                _carry_out(transfer, backing)
                continue
            distinct = set(pages)
            if len(distinct) != len(pages):
                _carry_out(transfer, backing)
                continue
            if len(numbers) + len(pages) > MULTI_TCE_LIMIT:
                self._redirect(group, numbers, backing)
                group, numbers, seen = [], [], set()
            segments = []
            for address, length in places:
                lead = len(numbers) << TCE_PAGE_SHIFT | address & _OFFSET
                segments.append((lead, length))
                numbers.extend(range(address >> TCE_PAGE_SHIFT, (address + length + _OFFSET) >> TCE_PAGE_SHIFT))
            seen |= distinct
            group.append((transfer, segments))
        self._redirect(group, numbers, backing)

    def _redirect(
        self, group: list[tuple[Transfer, list[tuple[int, int]]]], numbers: list[int], backing: Backing
    ) -> None:
        redirector = self._redirector
        if redirector is None or len(numbers) < REDIRECT_PAGES or not redirector.move_all(group, numbers, backing):
            for transfer, _ in group:
                _carry_out(transfer, backing)

    # -- small things out

    def write(self, pieces: Sequence[tuple[Payload, int, bytes]]) -> list[bool]:
        """See `Batch`."""
        done = [False] * len(pieces)
        wanted: list[tuple[int, bytes, int]] = []
        for number, (payload, offset, data) in enumerate(pieces):
            places = _places(payload, offset, len(data))
            if len(places) == 1:
                wanted.append((places[0][0], data, number))
        if len(wanted) > 1:
            wanted.sort(key=lambda one: one[0])
        begin, end = 0, -1
        for number, (address, data, _) in enumerate(wanted):
            if address != end:
                self._write_run(wanted[begin:number], done)
                begin = number
            end = address + len(data)
        self._write_run(wanted[begin:], done)
        return done

    def _write_run(self, run: list[tuple[int, bytes, int]], done: list[bool]) -> None:
        """These are side by side."""
        if not run:
            return
        data = b"".join([data for _, data, _ in run])
        try:
            self._window.write(run[0][0], data[:BOUNCE_SIZE])
        except RemoteError:
            if len(run) > 1:
                for one in run:
                    self._write_run([one], done)
            return
        for _, _, number in run:
            done[number] = True


def _places(payload: Payload, offset: int, length: int) -> list[tuple[int, int]]:
    """Where a part of a payload is at the client; nowhere after the queue's end."""
    try:
        return cast(RdmaPayload, payload).pieces(offset, length)
    except RemoteError:
        return []


def _alone(payload: Payload, offset: int, length: int) -> bytes | None:
    try:
        return payload.read(offset, length)
    except RemoteError:
        return None


def _carry_out(transfer: Transfer, backing: Backing) -> None:
    """By itself."""
    move = transfer.payload.fill_from if transfer.to_driver else transfer.payload.drain_to
    try:
        move(backing, transfer.position, transfer.offset, transfer.length)
    except (OSError, RemoteError) as error:
        transfer.error = error
