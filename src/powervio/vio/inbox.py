# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The receiving half of a CRQ connection: elements are taken out of the queue and handed up.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.vio.slots import CrqSlots

from powervio.papr.crq import VALID_MESSAGE

_LIMIT = cython.declare(cython.int, 256)
"""Elements handled in one go, so that a flood from one partner does not hold up the partition's other adapters."""
_MESSAGE = cython.declare(cython.uint, VALID_MESSAGE)
_HEADER_SHIFT = cython.declare(cython.int, 56)
_log = logging.getLogger(__name__)


@cython.final
@cython.cclass
class Inbox:
    """Messages go up while the connection is open; what else there is goes to whoever keeps the connection's state."""

    on_message: Any
    is_open: cython.bint
    is_closed: cython.bint
    strays: cython.ulonglong
    slots: CrqSlots
    _name: str
    _on_other: Any
    _on_rest: Any
    _on_drained: Any
    _draining: cython.bint

    def __init__(
        self,
        memory: memoryview,
        name: str,
        on_message: Callable[[int, int], None],
        on_other: Callable[[int, int], None],
        on_rest: Callable[[], None],
        on_drained: Callable[[], None] | None,
    ) -> None:
        """`memory` is the queue. All but the last two get both halves of an element.

        `on_rest` is called when there may be more, and nobody else will say so; `on_drained` after a batch of messages.
        """
        self.on_message = on_message
        self.is_open = False
        """Whether messages are handed up; otherwise they are strays."""
        self.is_closed = True
        """Whether the queue is not registered: nothing is taken."""
        self.strays = 0
        """Elements dropped: messages outside an open connection, unknown headers and events."""
        self.slots = CrqSlots(memory)
        self._name = name
        self._on_other = on_other
        self._on_rest = on_rest
        self._on_drained = on_drained
        self._draining = False

    @cython.ccall
    def drain(self) -> cython.void:
        """Take everything out of the queue and hand it up."""
        if self._draining or self.is_closed or not self.slots.waiting():
            return  # a handler waits in hcalls only, but may reset the connection from inside a message
        self._draining = True
        try:
            self._drain()
        finally:
            self._draining = False

    @property
    def waiting(self) -> bool:
        """Whether there are elements that were not taken yet."""
        return self.has_more()

    @cython.cfunc
    @cython.exceptval(check=False)
    def has_more(self) -> cython.bint:
        """See `waiting`."""
        return not self.is_closed and self.slots.waiting()

    @cython.cfunc
    def _drain(self) -> cython.void:
        handed_up: cython.bint = False
        left: cython.int = _LIMIT
        while left > 0 and not self.is_closed and self.slots.take():
            left -= 1
            if self.slots.high >> _HEADER_SHIFT != _MESSAGE:
                self._on_other(self.slots.high, self.slots.low)
            elif self.is_open:
                handed_up = True
                self._hand_up(self.slots.high, self.slots.low)
            else:
                self.strays += 1
        if left == 0:
            self._on_rest()
        if handed_up and self._on_drained is not None:
            self._on_drained()

    @cython.cfunc
    def _hand_up(self, high: cython.ulonglong, low: cython.ulonglong) -> cython.void:
        """A message that trips its handler must not hold up those behind it."""
        try:
            self.on_message(high, low)
        except Exception:
            _log.exception("%s: message %016x %016x failed here", self._name, high, low)
