# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""How compiled code of a device moves bytes of drivers whose memory it cannot reach: by way of memory of its own.

Where a transport charges for each copy, a device that looks at the beginning of what it moves, as a switch does, wants
to choose itself what is brought here, and what goes from one driver's memory straight into another's.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython


@cython.cclass
class Staging:
    """Of one queue, or of several: the memory may be shared by all that are served in a thread, and what is there is
    good until anything else is moved by the transport.

    Addresses are device addresses, lengths and places bytes. Each call returns 1, or 0 when a driver's memory is not
    there: then nothing may be believed of what it should have moved.
    """

    base: cython.p_uchar
    size: cython.ulonglong

    @cython.cfunc
    @cython.exceptval(-1)
    def bring(self, address: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong) -> cython.int:
        """Copy from the driver's memory to a place here."""
        raise NotImplementedError

    @cython.cfunc
    @cython.exceptval(-1)
    def put(self, address: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong) -> cython.int:
        """Copy from a place here into the driver's memory."""
        raise NotImplementedError

    @cython.cfunc
    @cython.exceptval(-1)
    def pass_on(
        self, address: cython.ulonglong, length: cython.ulonglong, other: Staging, to: cython.ulonglong
    ) -> cython.int:
        """Copy from this driver's memory into that of another, whose queue is of the same transport and thread."""
        raise NotImplementedError
