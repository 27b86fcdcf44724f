# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What was decided of a frame: who gets it, and what becomes of its tag; or why nobody does.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import ld8, ld64, pointer

DROP = 0
"""Kinds of decisions."""
ONE = 1
FLOOD = 2

KEEP = 0
"""What becomes of a frame's tag."""
STRIP = 1
PUSH = 2
REPLACE = 3

REASONS = (
    "too short",
    "bad source",
    "two tags",
    "tagged",
    "foreign VLAN",
    "inactive trunk",
    "spoofed",
    "rate",
    "for the next bridge",
    "storm",
    "same port",
    "no receiver",
    "no port",
    "malformed",
    "queue full",
    "line full",
    "lost on the line",
)
"""Why frames go nowhere: counters of a port, in this order. The last three are those of a receiver, for `miss`."""
NO_RECEIVER = REASONS.index("no receiver")
QUEUE_FULL = REASONS.index("queue full")
LINE_FULL = REASONS.index("line full")
LOST = REASONS.index("lost on the line")

_DROP = cython.declare(cython.int, 0)
_KEEP = cython.declare(cython.int, 0)
_STRIP = cython.declare(cython.int, 1)
_PUSH = cython.declare(cython.int, 2)
_REPLACE = cython.declare(cython.int, 3)

_UNTAGGED = cython.declare(cython.int, 0)
_WITH_TAG = cython.declare(cython.int, 1)


@cython.final
@cython.cclass
class Decision:
    """What was decided of one frame; its owner has one for all of its frames."""

    kind: cython.int
    reason: cython.int
    egress: cython.int
    tagged: cython.bint
    vlan: cython.int
    tci: cython.uint
    came: cython.int
    todo: cython.int
    words: cython.uint
    place: cython.uint
    rest: cython.ulonglong
    receivers: cython.p_uchar
    tags: cython.p_uchar
    _books: Any

    def __init__(self, core: Any) -> None:
        """For a `switch_core.SwitchCore`. `egress`: the port of ONE, `tagged`: whether that one gets a tag, `todo`: the
        `change` for it; `vlan`, `tci`: of the frame.
        """
        receivers, tags = bytearray(core.stride), bytearray(core.stride)
        self._books = (receivers, tags)
        self.receivers = pointer(receivers)
        self.tags = pointer(tags)
        self.words = core.words
        self.kind = _DROP
        self.reason = self.egress = self.vlan = self.came = self.todo = 0
        self.tci = self.place = 0
        self.rest = 0
        self.tagged = False

    @cython.ccall
    @cython.exceptval(check=False)
    def next(self) -> cython.int:
        """Of FLOOD: the next receiver, once; -1 when there is none."""
        return self.next_receiver()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_receiver(self) -> cython.int:
        """See `next`."""
        word: cython.ulonglong
        number: cython.uint
        while self.rest == 0:
            if self.place >= self.words:
                return -1
            self.rest = ld64(self.receivers, 8 * self.place)
            self.place += 1
        number = 64 * (self.place - 1)
        word = self.rest
        self.rest = word & (word - 1)
        while word & 0xFF == 0:
            word >>= 8
            number += 8
        while word & 1 == 0:
            word >>= 1
            number += 1
        return number

    @cython.ccall
    @cython.exceptval(check=False)
    def takes_tagged(self, port: cython.int) -> cython.bint:
        """Of FLOOD: whether a receiver gets a tag."""
        return self.gets_tagged(port)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gets_tagged(self, port: cython.int) -> cython.bint:
        """See `takes_tagged`."""
        return ld8(self.tags, port >> 3) >> (port & 7) & 1 != 0

    @cython.ccall
    @cython.exceptval(check=False)
    def change(self, tagged: cython.bint) -> cython.int:
        """What becomes of the tag for a receiver that gets one, or none."""
        return self.tag_change(tagged)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def tag_change(self, tagged: cython.bint) -> cython.int:
        """See `change`."""
        if not tagged:
            return _KEEP if self.came == _UNTAGGED else _STRIP
        if self.came == _UNTAGGED:
            return _PUSH
        return _KEEP if self.came == _WITH_TAG else _REPLACE
