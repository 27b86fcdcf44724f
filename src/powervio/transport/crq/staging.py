# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""`Staging` over remote DMA: the bounce area of the server's adapters, and H_COPY_RDMA between two clients' panes.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.transport.crq.remote import RemoteWindow
from cython.cimports.powervio.virtio.staging import Staging

from powervio.errors import RemoteError
from powervio.transport.crq.remote import BOUNCE_SIZE


@cython.final
@cython.cclass
class RdmaStaging(Staging):
    """Of one client's window."""

    _window: RemoteWindow
    _local: cython.ulonglong

    def __init__(self, window: RemoteWindow) -> None:
        self.base = window.base
        self.size = BOUNCE_SIZE
        self._window = window
        self._local = window.bounce.ioba

    @cython.cfunc
    @cython.exceptval(-1)
    def bring(self, address: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong) -> cython.int:
        """See `Staging`: one call of the hypervisor."""
        try:
            self._window.copy_in(address, length, self._local + place)
        except RemoteError:
            return 0
        return 1

    @cython.cfunc
    @cython.exceptval(-1)
    def put(self, address: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong) -> cython.int:
        """See `Staging`: one call of the hypervisor."""
        try:
            self._window.copy_out(address, length, self._local + place)
        except RemoteError:
            return 0
        return 1

    @cython.cfunc
    @cython.exceptval(-1)
    def pass_on(
        self, address: cython.ulonglong, length: cython.ulonglong, other: Staging, to: cython.ulonglong
    ) -> cython.int:
        """See `Staging`: one call, and the bytes do not come here."""
        there: RdmaStaging = cython.cast(RdmaStaging, other, typecheck=True)
        try:
            self._window.copy_across(address, length, there._window, to)
        except RemoteError:
            return 0
        return 1
