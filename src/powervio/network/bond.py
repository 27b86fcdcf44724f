"""Link aggregation: several ports as one, which goes on while one of them has a link.

Two modes, as everybody knows them: 802.3ad, where LACP (`lacp`) agrees with the partner on the links that are used, and
all of them are; and active-backup, where one is, and the partner need not know. Frames of one flow go over one link,
and so stay in their order; when a link is lost, only its flows move. Frames are taken from links that are used and from
no others, so that none comes twice.

The times are the owner's: it calls `advance` when `due` says so, or has `run` do that in a loop.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from powervio.errors import LocalError
from powervio.network.flow import flow_hash
from powervio.network.lacp import Aggregation, LacpOptions, Times
from powervio.network.lacp_pdu import is_slow
from powervio.network.link import Link
from powervio.network.port import Frame, Offload, Port
from powervio.network.scheduler import Cancellable, Scheduler

Mode = Literal["802.3ad", "active-backup"]
BUCKETS = 256
"""Parts of all flows that move from link to link together."""
_MAX_MEMBERS = 8


@dataclass(frozen=True, slots=True)
class BondMember:
    """One link, as it is configured."""

    name: str
    open: Callable[[], Port]
    """Its port; called again when the port was lost, as with an interface that is deleted and made anew. Raises
    `LocalError`."""
    link: Link
    priority: int = 0xFF
    """Of LACP: links with the lower one are used before others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BondOptions:
    """What a bond is."""

    mode: Mode = "802.3ad"
    interval: float = 0.1
    """Seconds after which links are looked at, beside when they say so themselves."""
    primary: str = ""
    """Of active-backup: the member that is used whenever it has a link; else the one in use stays."""
    delay: float = 0.0
    """Of active-backup: seconds for which a link must be there before it takes the place of one that works."""
    fast: bool = True
    """The others are LACP's, see `LacpOptions`."""
    active: bool = True
    individual: bool = True
    system_priority: int = 0xFFFF
    key: int = 1
    times: Times = field(default_factory=Times)


@dataclass(slots=True, eq=False)
class _Member:
    number: int
    config: BondMember
    port: Port | None
    up: bool = False
    up_since: float = 0.0
    fd: int = -1
    failures: int = 0
    """Times that its link was lost."""
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class MemberReport:
    """What became of a member."""

    name: str
    up: bool
    used: bool
    """Whether frames are sent over it."""
    state: str
    """Of LACP: how far both ends have come with it; "active" or "backup"."""
    partner: str
    """Of LACP: the other end's system, or ""."""
    sent: int
    received: int
    failures: int
    dropped: dict[str, int]


class BondPort(Port):
    """The members as one port; see `Port`. All of them have a descriptor, or none has."""

    def __init__(
        self,
        name: str,
        members: Sequence[BondMember],
        options: BondOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: seconds. Raises `LocalError`."""
        super().__init__()
        self.name = name
        self.options = options or BondOptions()
        self.on_move: Callable[[], None] | None = None
        """Called when frames go over other links than before, and over none of those: who is beyond them has to learn
        where addresses are."""
        self._clock = clock
        self._configs = tuple(members)
        self._epoll: select.epoll | None = None
        self._members: list[_Member] = []
        self._call: tuple[Scheduler, Cancellable | None] | None = None
        try:
            self._begin()
        except LocalError:
            self.close()
            raise

    def _begin(self) -> None:
        members = self._configs
        self._check(members)
        self._lacp: Aggregation | None = None
        if self.options.mode == "802.3ad":
            self._lacp = Aggregation(self._lacp_options(members[0].link.address))
        self._by_number: dict[int, _Member] = {}
        self._links: dict[int, _Member] = {}
        self._used: tuple[_Member, ...] = ()
        self._table: list[_Member] = []
        self._active: _Member | None = None
        self._collecting: frozenset[int] = frozenset()
        self._turn = 0
        self._next_look = 0.0
        for number, config in enumerate(members, 1):
            self._add(number, config)
        self._look()

    def _check(self, members: Sequence[BondMember]) -> None:
        names = [member.name for member in members]
        if not 1 <= len(members) <= _MAX_MEMBERS or len(set(names)) != len(names):
            raise LocalError(f"bond {self.name} of {names}; expected up to {_MAX_MEMBERS} links, each once")
        if self.options.primary and self.options.primary not in names:
            raise LocalError(f"bond {self.name}: primary {self.options.primary} is none of its links")
        if self.options.interval <= 0 or self.options.delay < 0:
            raise LocalError(f"bond {self.name}: interval or delay below 0")

    def _lacp_options(self, system: bytes) -> LacpOptions:
        options = self.options
        return LacpOptions(
            system=system,
            system_priority=options.system_priority,
            key=options.key,
            fast=options.fast,
            active=options.active,
            individual=options.individual,
            times=options.times,
        )

    def _add(self, number: int, config: BondMember) -> None:
        member = _Member(number, config, config.open())
        self._members.append(member)
        self._by_number[number] = member
        assert member.port is not None
        self.mtu = min(port.mtu for port in self._ports())
        fds = {port.fileno() >= 0 for port in self._ports()}
        if len(fds) > 1:
            raise LocalError(f"bond {self.name}: some links have a descriptor, and some have none")
        if fds == {True} and self._epoll is None:
            self._epoll = select.epoll()
        if self._lacp is not None:
            self._lacp.add(number, config.link.address, priority=config.priority)
        news = config.link.fileno()
        if news >= 0 and self._epoll is not None:
            self._links[news] = member
            self._epoll.register(news, select.EPOLLIN)
        self._attach(member)

    def _ports(self) -> list[Port]:
        return [member.port for member in self._members if member.port is not None]

    def _attach(self, member: _Member) -> None:
        port = member.port
        assert port is not None
        port.take(Offload(self.taken))
        if self._epoll is None:
            port.on_arrival = self._arrived
            return
        member.fd = port.fileno()
        self._epoll.register(member.fd, select.EPOLLIN)

    def _arrived(self) -> None:
        if self.on_arrival is not None:
            self.on_arrival()

    # -- frames

    def fileno(self) -> int:
        """See `Port`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def send(self, frame: Frame) -> bool:
        """See `Port`."""
        table = self._table
        if not table:
            return self.drop("no link")
        port = table[flow_hash(frame.data) % BUCKETS].port if len(self._used) > 1 else table[0].port
        if port is None or not port.send(frame):
            return self.drop("lost by a link")
        self.sent += 1
        return True

    def receive(self) -> Frame | None:
        """See `Port`: frames of all links in turns."""
        members = self._members
        idle = 0
        while idle < len(members):
            member = members[self._turn % len(members)]
            frame = self._of(member)
            if frame is None:
                self._turn += 1
                idle += 1
                continue
            idle = 0
            if is_slow(frame.data):
                self._slow(member, frame)
            elif member.number in self._collecting:
                self.received += 1
                return frame
            else:
                member.drop("not collecting")
        self._hear()
        return None

    def _of(self, member: _Member) -> Frame | None:
        if member.port is None:
            return None
        try:
            return member.port.receive()
        except OSError:
            self._detach(member)
            return None

    def _slow(self, member: _Member, frame: Frame) -> None:
        if self._lacp is not None and member.up:
            self._lacp.receive(member.number, frame.data, self._clock())
            self._settle()

    def take(self, offloads: Offload) -> None:
        """See `Port`."""
        super().take(offloads)
        for port in self._ports():
            port.take(offloads)

    def close(self) -> None:
        """See `Port`."""
        if self._call is not None and self._call[1] is not None:
            self._call[1].cancel()
        self._call = None
        for member in self._members:
            if member.port is not None:
                member.port.on_arrival = None
                member.port.close()
                member.port = None
        for config in self._configs:
            config.link.close()
        if self._epoll is not None:
            self._epoll.close()

    # -- links

    @property
    def up(self) -> bool:
        """Whether there is a link over which frames go."""
        return bool(self._table)

    @property
    def used(self) -> tuple[str, ...]:
        """The links over which frames go."""
        return tuple(member.config.name for member in self._used)

    def due(self) -> float:
        """When `advance` has something to do."""
        lacp = None if self._lacp is None else self._lacp.due()
        return self._next_look if lacp is None else min(self._next_look, lacp)

    def advance(self) -> None:
        """Look at the links, and let time pass for LACP."""
        now = self._clock()
        if now >= self._next_look:
            self._look()
        if self._lacp is not None:
            self._lacp.advance(now)
        self._settle()

    def run(self, scheduler: Scheduler) -> None:
        """Have `advance` called in a loop, until the port is closed; its clock must be the port's."""
        self._call = (scheduler, None)
        self._again()

    def _again(self) -> None:
        if self._call is None:
            return
        self.advance()
        scheduler = self._call[0]
        self._call = (scheduler, scheduler.call_later(max(self.due() - self._clock(), 0.0), self._again))

    def _hear(self) -> None:
        """A link has news, if its descriptor is among those that are readable."""
        if self._epoll is None or not self._links:
            return
        heard = [self._links[fd] for fd, _ in self._epoll.poll(0) if fd in self._links]
        for member in heard:
            member.config.link.hear()
        if heard:
            self._look()
            self._settle()

    def _look(self) -> None:
        now = self._clock()
        self._next_look = now + self.options.interval
        for member in self._members:
            up = member.config.link.up()
            if up and member.port is None:
                up = self._reopen(member)
            self._set_up(member, up and member.port is not None, now)
        if self._lacp is None:
            self._choose(now)
        self._settle()

    def _set_up(self, member: _Member, up: bool, now: float) -> None:
        if up == member.up:
            return
        member.up = up
        member.up_since = now
        member.failures += not up
        if self._lacp is not None:
            self._lacp.set_enabled(member.number, up, now)

    def _detach(self, member: _Member) -> None:
        """Its port is of no use any more."""
        port, member.port = member.port, None
        assert port is not None
        if self._epoll is not None:
            self._epoll.unregister(member.fd)
            member.fd = -1
        port.on_arrival = None
        port.close()
        member.drop("port lost")
        self._set_up(member, False, self._clock())
        if self._lacp is None:
            self._choose(self._clock())
        self._settle()

    def _reopen(self, member: _Member) -> bool:
        try:
            member.port = member.config.open()
        except LocalError:
            return False
        self._attach(member)
        return True

    def _choose(self, now: float) -> None:
        """The active one of active-backup."""
        usable = [member for member in self._members if member.up]
        current = self._active if self._active in usable else None
        if current is not None:
            settled = [member for member in usable if now >= member.up_since + self.options.delay]
            better = [member for member in settled if member.config.name == self.options.primary]
        else:
            better = [member for member in usable if member.config.name == self.options.primary] or usable[:1]
        self._active = better[0] if better else current

    def _settle(self) -> None:
        """Carry out what was decided about links, and send LACPDUs."""
        if self._lacp is not None:
            for number, data in self._lacp.take():
                port = self._by_number[number].port
                if port is not None:
                    port.send(Frame(data))
            self._collecting = self._lacp.collecting
            used = tuple(self._by_number[number] for number in self._lacp.distributing)
        else:
            used = () if self._active is None else (self._active,)
            self._collecting = frozenset(member.number for member in used)
        if used == self._used:
            return
        before, self._used = self._used, used
        self._table = _shared(self._table, used)
        if used and not set(before) & set(used) and self.on_move is not None:
            self.on_move()

    # -- who looks

    def report(self) -> list[MemberReport]:
        """All members."""
        return [self._report(member) for member in self._members]

    def _report(self, member: _Member) -> MemberReport:
        port = member.port
        partner = ""
        if self._lacp is not None:
            entry = self._lacp.members[member.number]
            state = entry.mux.value
            if entry.receive.value in ("current", "expired"):
                partner = entry.partner.system.hex(":")
            dropped = member.dropped | {name: n for name, n in entry.counters.items() if name == "malformed"}
        else:
            state = "active" if member is self._active else "backup"
            dropped = dict(member.dropped)
        for reason, number in (port.dropped if port is not None else {}).items():
            dropped[reason] = dropped.get(reason, 0) + number
        return MemberReport(
            name=member.config.name,
            up=member.up,
            used=member in self._used,
            state=state,
            partner=partner,
            sent=port.sent if port is not None else 0,
            received=port.received if port is not None else 0,
            failures=member.failures,
            dropped=dropped,
        )


def _shared(table: list[_Member], used: tuple[_Member, ...]) -> list[_Member]:
    """Which link each bucket has: as before while its link is used; all links have as many, give or take one."""
    if not used:
        return []
    room = dict.fromkeys(used, BUCKETS // len(used))
    for member in used[: BUCKETS % len(used)]:
        room[member] += 1
    new: list[_Member | None] = [None] * BUCKETS
    for bucket, member in enumerate(table):
        if room.get(member, 0):
            room[member] -= 1
            new[bucket] = member
    spare = iter([member for member, left in room.items() for _ in range(left)])
    return [next(spare) if member is None else member for member in new]


def make_members(
    interfaces: Sequence[str], open_port: Callable[[str], Port], open_link: Callable[[str], Link]
) -> list[BondMember]:
    """One for each interface. Raises `LocalError`, and then nothing stays open."""
    made: list[BondMember] = []
    try:
        for name in interfaces:
            made.append(BondMember(name, partial(open_port, name), open_link(name)))
    except LocalError:
        for member in made:
            member.link.close()
        raise
    return made
