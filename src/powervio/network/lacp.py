"""Link aggregation by LACP (IEEE 802.1AX-2014, 6.4): which of several links carry frames, as both ends agree.

Theory of operation. Each end tells the other, for each link, who it is and what it knows of the other. Links with the
same systems and keys at both ends are one aggregate; a link takes part when both ends have put it into theirs
(SYNCHRONIZATION), and frames are sent over it when the partner says that it collects. Four machines a link, each a
table here, move whenever something happens, in this order:

    receive   what is known of the partner: nothing, what is assumed of one without LACP, the last LACPDU, an old one
    periodic  how often the partner wants to hear from us
    select    which aggregate is the one that is used; links of others are UNSELECTED, spare ones STANDBY
    mux       from DETACHED to DISTRIBUTING, one step at a time, and back

`Aggregation` knows neither sockets nor clocks: frames and times (seconds, never going back) come in, frames go out by
`take`, and `due` says when it wants to be called next. There is one aggregate, since there is one client above; links
to another partner wait. A link whose partner does not speak LACP is an aggregate of its own (an individual link).

For editors:
1. A transition is a row of `_RECEIVE`, `_PERIODIC` or `_MUX`; what a state does on entry is `_enter_...`.
2. Each member waits its own time before it is attached; the standard waits for all that wait. So one link that comes
   and goes does not hold up the others.
3. Collecting and distributing are told apart (independent control): nothing is sent to a partner that drops it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from powervio.errors import LocalError, RemoteError
from powervio.network.lacp_pdu import Lacpdu, Marker, PortInfo, State, check_address, parse

_PDUS_AT_ONCE = 3
"""LACPDUs of a port in one fast period, at most (6.4.16)."""
_RESPONSES_AT_ONCE = 10
"""Marker responses of a port in one fast period."""
_MAX_MEMBERS = 64
_MAX_NUMBER = 0xFFFF


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds (6.4.4); others than the standard's are for tests."""

    fast: float = 1.0
    slow: float = 30.0
    short: float = 3.0
    """Without an LACPDU of a partner that sends them fast: it has expired."""
    long: float = 90.0
    wait: float = 2.0
    """Before a member is attached, so that others may come along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LacpOptions:
    """This end of an aggregate."""

    system: bytes
    """MAC address that names this end."""
    system_priority: int = 0xFFFF
    """The end with the lower one, or else the lower address, chooses the spare links."""
    key: int = 1
    """Of all members that are not given another one."""
    fast: bool = True
    """Ask the partner for an LACPDU each second, so that a silent link is left after 3 s; else 30 and 90 s."""
    active: bool = True
    """Speak first. One of the two ends has to."""
    individual: bool = True
    """Use one link when no partner speaks LACP."""
    max_active: int = 8
    """Links in use at most; more are spare."""
    times: Times = field(default_factory=Times)

    def check(self) -> None:
        """Raises `LocalError`."""
        check_address(self.system)
        if not (0 <= self.system_priority <= 0xFFFF and 1 <= self.key <= 0xFFFF and self.max_active >= 1):
            raise LocalError(
                f"LACP: priority {self.system_priority}, key {self.key}, {self.max_active} links at most; "
                "expected a priority up to 65535, a key from 1 to 65535, 1 link or more"
            )


class Receive(Enum):
    """What is known of the partner."""

    PORT_DISABLED = "disabled"
    EXPIRED = "expired"
    DEFAULTED = "defaulted"
    CURRENT = "current"


class Periodic(Enum):
    """How often LACPDUs are sent."""

    NONE = "none"
    FAST = "fast"
    SLOW = "slow"


class Selected(Enum):
    """Whether a member is of the aggregate."""

    UNSELECTED = "unselected"
    SELECTED = "selected"
    STANDBY = "standby"


class Mux(Enum):
    """How far it has come."""

    DETACHED = "detached"
    WAITING = "waiting"
    ATTACHED = "attached"
    COLLECTING = "collecting"
    DISTRIBUTING = "distributing"


class _Event(Enum):
    ENABLED = 1
    DISABLED = 2
    PDU = 3
    TIMER = 4


@dataclass(slots=True, eq=False)
class Member:
    """One link."""

    number: int
    address: bytes
    """Its own, from which LACPDUs are sent."""
    priority: int
    key: int
    actor_state: State
    partner: PortInfo
    enabled: bool = False
    receive: Receive = Receive.PORT_DISABLED
    periodic: Periodic = Periodic.NONE
    selected: Selected = Selected.UNSELECTED
    mux: Mux = Mux.DETACHED
    ready: bool = False
    """It waited its time."""
    current_while: float | None = None
    next_period: float | None = None
    wait_while: float | None = None
    needs_to_send: bool = False
    sent_at: deque[float] = field(default_factory=lambda: deque(maxlen=_PDUS_AT_ONCE))
    answered_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RESPONSES_AT_ONCE))
    counters: dict[str, int] = field(default_factory=dict)
    """PDUs by kind, and what was wrong with others."""

    def count(self, what: str) -> None:
        """Count one."""
        self.counters[what] = self.counters.get(what, 0) + 1

    @property
    def collecting(self) -> bool:
        """Whether frames that come are given on."""
        return self.mux in (Mux.COLLECTING, Mux.DISTRIBUTING)

    @property
    def distributing(self) -> bool:
        """Whether frames may be sent."""
        return self.mux is Mux.DISTRIBUTING


_RECEIVE: dict[tuple[Receive, _Event], Receive] = {
    (Receive.PORT_DISABLED, _Event.ENABLED): Receive.EXPIRED,
    (Receive.EXPIRED, _Event.PDU): Receive.CURRENT,
    (Receive.EXPIRED, _Event.TIMER): Receive.DEFAULTED,
    (Receive.DEFAULTED, _Event.PDU): Receive.CURRENT,
    (Receive.CURRENT, _Event.PDU): Receive.CURRENT,
    (Receive.CURRENT, _Event.TIMER): Receive.EXPIRED,
    **{(state, _Event.DISABLED): Receive.PORT_DISABLED for state in Receive},
}
"""6.4.12. What is not here changes nothing."""

_PERIODIC: dict[tuple[bool, bool], Periodic] = {
    (False, False): Periodic.NONE,
    (False, True): Periodic.NONE,
    (True, False): Periodic.SLOW,
    (True, True): Periodic.FAST,
}
"""6.4.13: by whether anybody sends unasked over a link that is up, and whether the partner wants to hear fast."""


def _is(*values: Selected) -> Callable[[Member], bool]:
    return lambda member: member.selected in values


_out = _is(Selected.UNSELECTED, Selected.STANDBY)
_in_sync = State.SYNCHRONIZATION
_gathers = State.SYNCHRONIZATION | State.COLLECTING

_MUX: dict[Mux, tuple[tuple[Callable[[Member], bool], Mux], ...]] = {
    Mux.DETACHED: ((_is(Selected.SELECTED, Selected.STANDBY), Mux.WAITING),),
    Mux.WAITING: (
        (_is(Selected.UNSELECTED), Mux.DETACHED),
        (lambda member: member.selected is Selected.SELECTED and member.ready, Mux.ATTACHED),
    ),
    Mux.ATTACHED: (
        (_out, Mux.DETACHED),
        (lambda member: bool(member.partner.state & _in_sync), Mux.COLLECTING),
    ),
    Mux.COLLECTING: (
        (lambda member: _out(member) or not member.partner.state & _in_sync, Mux.ATTACHED),
        (lambda member: member.partner.state & _gathers == _gathers, Mux.DISTRIBUTING),
    ),
    Mux.DISTRIBUTING: ((lambda member: _out(member) or member.partner.state & _gathers != _gathers, Mux.COLLECTING),),
}
"""6.4.15, with independent control. The first guard that holds counts."""

_MUX_STATE = {
    Mux.DETACHED: State(0),
    Mux.WAITING: State(0),
    Mux.ATTACHED: State.SYNCHRONIZATION,
    Mux.COLLECTING: State.SYNCHRONIZATION | State.COLLECTING,
    Mux.DISTRIBUTING: State.SYNCHRONIZATION | State.COLLECTING | State.DISTRIBUTING,
}
_MUX_BITS = _MUX_STATE[Mux.DISTRIBUTING]
_NEEDS_TO_KNOW = State.ACTIVITY | State.TIMEOUT | State.SYNCHRONIZATION | State.AGGREGATION
"""What of our state a partner that has it wrong is told at once (6.4.9, update_NTT)."""

_Aggregate: TypeAlias = tuple[object, ...]


class Aggregation:
    """One end of an aggregate."""

    def __init__(self, options: LacpOptions) -> None:
        """Raises `LocalError`."""
        options.check()
        self.options = options
        self.members: dict[int, Member] = {}
        self.collecting: frozenset[int] = frozenset()
        """Members whose frames are given on; replaced when it changes."""
        self.distributing: tuple[int, ...] = ()
        """Members over which frames may be sent, in order; replaced when it changes."""
        self._chosen: _Aggregate | None = None
        self._outbox: list[tuple[int, bytes]] = []
        # Of a partner without LACP: one link, which is used as it is, if it may be
        alone = State.SYNCHRONIZATION | State.COLLECTING | State.DISTRIBUTING if options.individual else State(0)
        # so as to be heard soon by one that comes
        self._partner_admin = PortInfo(state=alone | (State.TIMEOUT if options.fast else State(0)))

    # -- what happens

    def add(self, number: int, address: bytes, *, priority: int = 0xFF, key: int | None = None) -> Member:
        """A member, which is disabled. `number` is 1 to 65535. Raises `LocalError`."""
        check_address(address)
        if not 1 <= number <= _MAX_NUMBER or number in self.members or len(self.members) >= _MAX_MEMBERS:
            raise LocalError(f"LACP: no member can be number {number}; expected another one of {_MAX_MEMBERS} at most")
        state = State.AGGREGATION | State.DEFAULTED
        state |= (State.ACTIVITY if self.options.active else 0) | (State.TIMEOUT if self.options.fast else 0)
        member = Member(number, address, priority, key or self.options.key, state, self._partner_admin)
        self.members[number] = member
        return member

    def remove(self, number: int, now: float) -> None:
        """A member goes, with what is to be sent over it."""
        del self.members[number]
        self._outbox = [(at, frame) for at, frame in self._outbox if at != number]
        self._settle(now)

    def set_enabled(self, number: int, enabled: bool, now: float) -> None:
        """The link of a member came up, or went down."""
        member = self.members[number]
        if member.enabled != enabled:
            member.enabled = enabled
            self._receive_event(member, _Event.ENABLED if enabled else _Event.DISABLED, now)
            self._settle(now)

    def receive(self, number: int, data: bytes | memoryview, now: float) -> None:
        """A frame of a slow protocol came; what is wrong with one is counted."""
        member = self.members[number]
        if not member.enabled:
            member.count("disabled")
            return
        try:
            message = parse(data)
        except RemoteError:
            member.count("malformed")
            return
        if isinstance(message, Marker):
            self._marker(member, message, now)
            return
        member.count("LACPDUs received")
        self._current(member, message, now)
        self._settle(now)

    def advance(self, now: float) -> None:
        """Time has passed."""
        for member in self.members.values():
            if member.current_while is not None and member.current_while <= now:
                self._receive_event(member, _Event.TIMER, now)
            if member.next_period is not None and member.next_period <= now:
                member.needs_to_send = True
                member.next_period = now + self._period(member.periodic)
            if member.wait_while is not None and member.wait_while <= now:
                member.wait_while = None
                member.ready = True
        self._settle(now)

    def due(self) -> float | None:
        """When `advance` has something to do; None while there are no links."""
        times: list[float] = []
        for member in self.members.values():
            timers = (member.current_while, member.next_period, member.wait_while)
            times += [timer for timer in timers if timer is not None]
            if member.needs_to_send and member.periodic is not Periodic.NONE:
                times.append(member.sent_at[0] + self.options.times.fast)
        return min(times, default=None)

    def take(self) -> list[tuple[int, bytes]]:
        """What is to be sent since the last time: by which member, frames."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def actor(self, member: Member) -> PortInfo:
        """What a member says of itself."""
        options = self.options
        return PortInfo(
            options.system_priority, options.system, member.key, member.priority, member.number, member.actor_state
        )

    # -- the receive machine

    def _receive_event(self, member: Member, event: _Event, now: float) -> None:
        state = _RECEIVE.get((member.receive, event))
        if state is not None:
            member.receive = state
            self._enter_receive(member, now)

    def _enter_receive(self, member: Member, now: float) -> None:
        times = self.options.times
        member.current_while = None
        if member.receive is Receive.PORT_DISABLED:
            member.partner = _without(member.partner, State.SYNCHRONIZATION)
            member.selected = Selected.UNSELECTED
        elif member.receive is Receive.EXPIRED:
            state = member.partner.state & ~State.SYNCHRONIZATION | State.TIMEOUT
            member.partner = replace(member.partner, state=state)
            member.current_while = now + times.short
            member.actor_state |= State.EXPIRED
        elif member.receive is Receive.DEFAULTED:
            if not member.partner.same_link(self._partner_admin):
                member.selected = Selected.UNSELECTED
            self._record_default(member)
            member.actor_state &= ~State.EXPIRED
        else:
            member.current_while = now + (times.short if self.options.fast else times.long)
            member.actor_state &= ~(State.EXPIRED | State.DEFAULTED)

    def _record_default(self, member: Member) -> None:
        member.partner = self._partner_admin
        member.actor_state |= State.DEFAULTED

    def _current(self, member: Member, pdu: Lacpdu, now: float) -> None:
        if not member.partner.same_link(pdu.actor):
            member.selected = Selected.UNSELECTED
        mine = self.actor(member)
        knows_us = pdu.partner.same_link(mine)
        if not knows_us or (pdu.partner.state ^ mine.state) & _NEEDS_TO_KNOW:
            member.needs_to_send = True
        # in sync with us in particular, or a link of its own; and somebody keeps it up to date (6.4.9, recordPDU)
        fits = knows_us or not pdu.actor.state & State.AGGREGATION
        tended = pdu.actor.state & State.ACTIVITY or mine.state & pdu.partner.state & State.ACTIVITY
        member.partner = pdu.actor if fits and tended else _without(pdu.actor, State.SYNCHRONIZATION)
        for other in self.members.values():
            if other is not member and not other.enabled and _same_port(other.partner, pdu.actor):
                self._record_default(other)  # the cable was moved (port_moved)
        self._receive_event(member, _Event.PDU, now)

    def _marker(self, member: Member, marker: Marker, now: float) -> None:
        if marker.is_response:
            member.count("marker responses received")
            return
        member.count("markers received")
        if self._is_full(member.answered_at, now):
            member.count("markers unanswered")
            return
        member.answered_at.append(now)
        self._outbox.append((member.number, marker.response().pack(member.address)))

    # -- selection

    def _select(self) -> None:
        groups: dict[_Aggregate, list[Member]] = {}
        for member in self.members.values():
            if self._may_be_used(member):
                groups.setdefault(self._aggregate(member), []).append(member)
        if self._chosen not in groups or (self._is_assumed(groups[self._chosen]) and len(groups) > 1):
            self._chosen = max(groups, key=lambda group: self._merit(groups[group]), default=None)
        chosen = groups.get(self._chosen, []) if self._chosen is not None else []
        ranked = sorted(chosen, key=self._rank)
        used = {member.number for member in ranked[: self.options.max_active]}
        spare = {member.number for member in ranked[self.options.max_active :]}
        for member in self.members.values():
            if member.number in used:
                wanted = Selected.SELECTED
            else:
                wanted = Selected.STANDBY if member.number in spare else Selected.UNSELECTED
            member.selected = wanted

    def _may_be_used(self, member: Member) -> bool:
        if not member.enabled or member.partner.system == self.options.system:  # a cable between two of our own
            return False
        if member.receive is Receive.DEFAULTED:
            return self.options.individual
        return not member.actor_state & State.DEFAULTED

    @staticmethod
    def _aggregate(member: Member) -> _Aggregate:
        partner = member.partner
        ends = (member.key, partner.system_priority, partner.system, partner.key)
        return ends if partner.state & State.AGGREGATION else (*ends, member.number)

    @staticmethod
    def _is_assumed(members: list[Member]) -> bool:
        return all(member.actor_state & State.DEFAULTED for member in members)

    def _merit(self, members: list[Member]) -> tuple[int, ...]:
        spoken = not self._is_assumed(members)
        heard = sum(member.receive is Receive.CURRENT for member in members)
        return spoken, heard, len(members), -min(member.number for member in members)

    def _rank(self, member: Member) -> tuple[int, int]:
        """Lower ones are used; the end with the lower identifier decides (6.7.1)."""
        partner, options = member.partner, self.options
        mine = (options.system_priority, options.system) < (partner.system_priority, partner.system)
        if mine or member.actor_state & State.DEFAULTED:
            return member.priority, member.number
        return partner.port_priority, partner.port

    # -- all machines, after something happened

    def _settle(self, now: float) -> None:
        for member in self.members.values():
            self._run_periodic(member, now)
            self._run_mux(member, now)  # what was unselected is detached before it is selected anew
        self._select()
        for member in self.members.values():
            self._run_mux(member, now)
            self._transmit(member, now)
        collecting = frozenset(member.number for member in self.members.values() if member.collecting)
        if collecting != self.collecting:
            self.collecting = collecting
        distributing = tuple(sorted(member.number for member in self.members.values() if member.distributing))
        if distributing != self.distributing:
            self.distributing = distributing

    def _run_periodic(self, member: Member, now: float) -> None:
        anybody = member.enabled and bool((member.actor_state | member.partner.state) & State.ACTIVITY)
        state = _PERIODIC[anybody, bool(member.partner.state & State.TIMEOUT)]
        if state is member.periodic:
            return
        if state is not Periodic.SLOW or member.periodic is Periodic.NONE:
            member.needs_to_send = True  # it may have waited for it
        member.periodic = state
        member.next_period = None if state is Periodic.NONE else now + self._period(state)

    def _period(self, state: Periodic) -> float:
        return self.options.times.fast if state is Periodic.FAST else self.options.times.slow

    def _run_mux(self, member: Member, now: float) -> None:
        for _ in range(2 * len(Mux)):
            state = next((state for guard, state in _MUX[member.mux] if guard(member)), None)
            if state is None:
                return
            member.mux = state
            member.actor_state = member.actor_state & ~_MUX_BITS | _MUX_STATE[state]
            member.ready = False
            member.wait_while = now + self.options.times.wait if state is Mux.WAITING else None
            member.needs_to_send = True

    def _transmit(self, member: Member, now: float) -> None:
        if not member.needs_to_send or member.periodic is Periodic.NONE:
            return
        if self._is_full(member.sent_at, now):
            return
        member.sent_at.append(now)
        member.needs_to_send = False
        member.count("LACPDUs sent")
        self._outbox.append((member.number, Lacpdu(self.actor(member), member.partner).pack(member.address)))

    def _is_full(self, times: deque[float], now: float) -> bool:
        return len(times) == times.maxlen and times[0] + self.options.times.fast > now


def _without(info: PortInfo, bits: State) -> PortInfo:
    return replace(info, state=info.state & ~bits)


def _same_port(one: PortInfo, other: PortInfo) -> bool:
    return (one.system_priority, one.system, one.port) == (other.system_priority, other.system, other.port)
