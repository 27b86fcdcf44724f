"""The life of a vhost-user ring: started or stopped, enabled or disabled. One table serves both ends.

Theory of operation. A ring is *started* by its first kick and *stopped* by GET_VRING_BASE. Apart from that it is
*enabled* or *disabled* by SET_VRING_ENABLE, at any time. It is served only while it is started and enabled; what is
made available meanwhile is served when that becomes so. In words of the vhost-user document ("Ring states"), and of
what front ends really do:

1. GET_VRING_BASE stops a ring and answers where it stands. It resets nothing: a ring that is started again without a
   SET_VRING_BASE goes on from there. It neither enables nor disables: QEMU 7.2 and later sends SET_VRING_ENABLE with 0
   before it, older versions do not.
2. SET_FEATURES with PROTOCOL_FEATURES changes nothing: QEMU sends it with LOG_ALL on and off in the middle of a
   migration. Without PROTOCOL_FEATURES there is no SET_VRING_ENABLE, so it enables every ring.
3. SET_VRING_KICK brings the descriptor of kicks and neither starts, stops, enables nor disables; one that says that
   there is no descriptor asks for polling, and starts the ring, for no kick will ever come.
4. Only SET_VRING_ENABLE with 0, RESET_DEVICE and the end of the connection disable a ring.
5. A status of 0 is a device reset: it stops the rings. RESET_DEVICE does that and disables them too.
6. A broken ring is not served, whatever this table says, until it is stopped: that is its owner's to look at.

For editors: an event that a ring may meet is a row of `TRANSITIONS`, not an `if` elsewhere; every row has every phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    """Where a ring is in its life."""

    STOPPED_DISABLED = "stopped, disabled"
    STOPPED_ENABLED = "stopped, enabled"
    STARTED_DISABLED = "started, disabled"
    RUNNING = "started, enabled"

    @property
    def started(self) -> bool:
        """Whether its addresses and indices are in use."""
        return self in (Phase.STARTED_DISABLED, Phase.RUNNING)

    @property
    def enabled(self) -> bool:
        """Whether requests may be served once it is started."""
        return self in (Phase.STOPPED_ENABLED, Phase.RUNNING)


class Event(Enum):
    """What can happen to a ring."""

    KICK = "first kick"
    SET_VRING_KICK = "SET_VRING_KICK with a descriptor"
    SET_VRING_POLL = "SET_VRING_KICK without a descriptor"
    GET_VRING_BASE = "GET_VRING_BASE"
    ENABLE = "SET_VRING_ENABLE 1"
    DISABLE = "SET_VRING_ENABLE 0"
    SET_FEATURES = "SET_FEATURES with PROTOCOL_FEATURES"
    SET_FEATURES_PLAIN = "SET_FEATURES without PROTOCOL_FEATURES"
    STATUS_RESET = "SET_STATUS 0"
    RESET_DEVICE = "RESET_DEVICE"
    DISCONNECT = "end of the connection"


_SD, _SE, _TD, _RUN = Phase.STOPPED_DISABLED, Phase.STOPPED_ENABLED, Phase.STARTED_DISABLED, Phase.RUNNING

TRANSITIONS: Mapping[Event, Mapping[Phase, Phase]] = {
    Event.KICK: {_SD: _TD, _SE: _RUN, _TD: _TD, _RUN: _RUN},
    Event.SET_VRING_KICK: {_SD: _SD, _SE: _SE, _TD: _TD, _RUN: _RUN},
    Event.SET_VRING_POLL: {_SD: _TD, _SE: _RUN, _TD: _TD, _RUN: _RUN},
    Event.GET_VRING_BASE: {_SD: _SD, _SE: _SE, _TD: _SD, _RUN: _SE},
    Event.ENABLE: {_SD: _SE, _SE: _SE, _TD: _RUN, _RUN: _RUN},
    Event.DISABLE: {_SD: _SD, _SE: _SD, _TD: _TD, _RUN: _TD},
    Event.SET_FEATURES: {_SD: _SD, _SE: _SE, _TD: _TD, _RUN: _RUN},
    Event.SET_FEATURES_PLAIN: {_SD: _SE, _SE: _SE, _TD: _RUN, _RUN: _RUN},
    Event.STATUS_RESET: {_SD: _SD, _SE: _SE, _TD: _SD, _RUN: _SE},
    Event.RESET_DEVICE: {_SD: _SD, _SE: _SD, _TD: _SD, _RUN: _SD},
    Event.DISCONNECT: {_SD: _SD, _SE: _SD, _TD: _SD, _RUN: _SD},
}


def after(phase: Phase, event: Event) -> Phase:
    """The phase that an event leads to."""
    return TRANSITIONS[event][phase]
