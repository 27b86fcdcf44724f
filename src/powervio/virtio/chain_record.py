# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a device ring tells of the chains that it takes and gives back, for a record that outlives the device.

The ring tells it by itself, at the moments that matter, so that no chain is forgotten: not one that goes back at once
because its indirect table cannot be fetched, and not one that IN_ORDER holds back although the device is done with it.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython


@cython.cclass
class ChainRecord:
    """A record of one queue. A ring calls, without the interpreter lock: `begin` or `begin_chain` with each chain that
    it takes, or `recall` with one that a predecessor took; `complete` with each that it puts among the used ones; then
    `publishing`, makes them visible, and calls `published`.

    `head` is what the ring calls the chain, less than the size of the queue. What no ring does raises `LocalError`.
    """

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin(self, head: cython.uint) -> cython.int:
        """A chain of a split ring is taken; its data have not been touched, and it is still in the ring to be read."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin_chain(
        self, head: cython.uint, table: cython.p_uchar, slot: cython.uint, count: cython.uint
    ) -> cython.int:
        """A chain of a packed ring is taken: `count` descriptors of the ring's private copy, from `slot` on and around.

        They are overwritten in the ring by used ones, and so the record has to keep them.
        """
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def recall(self, head: cython.uint, note: cython.uint, table: cython.p_uchar) -> cython.int:
        """A chain of a predecessor in a packed ring is `head` now. It is `note` to the record, which copies its
        descriptors to `table`, as they were in the ring, and returns how many they are.
        """
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def complete(self, head: cython.uint) -> cython.int:
        """A chain is among the used ones, where the driver does not see it yet."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def publishing(self, used_index: cython.uint) -> cython.int:
        """The driver is about to see what was completed; the ring's `used_index` is this then."""
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def published(self, used_index: cython.uint) -> cython.int:
        """The driver sees what was completed."""
        with cython.gil:
            raise NotImplementedError
