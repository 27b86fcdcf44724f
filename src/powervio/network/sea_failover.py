"""Which adapter of a pair bridges: the failover of Shared Ethernet Adapters.

Theory of operation. Each adapter says every 100 ms who it is, how it is, and the state of each of its trunks; who was
not heard for 400 ms is dead. One table moves each trunk, whose name both ends know:

    INIT      listening, after it was made
    LIMBO     the uplink has no link
    BACKUP    the other bridges, or should
    RECOVERY  this one should and the other does: it was asked
    NOTIFY    this one bridges, was asked, and has said yes; it goes on until the other has taken over
    PRIMARY   this one bridges

Who should: of those with a link, the one with the better claim, which is what the operator wants (FORCED before AUTO
and SHARING before STANDBY), then the priority (1 is the highest), then the lower address. When both share, every second
trunk is the other's.

There is never a loop, whatever these machines think: a VLAN has one active trunk adapter, the hypervisor sees to that,
and no other adapter hears or says anything in it. So a takeover is the activation of a trunk, it needs nobody's
consent, and the loser hears of it from the hypervisor (`deposed`). Who was deposed makes no claim until it has heard of
the other again: when the channel is cut and both are alive, the one that took over stays. It claims as well when the
hypervisor makes its trunk the active one, because the other's is gone (`elected`), or an operator says so. What is not
covered: the channel is cut, and then the one that bridges hangs without dying, or loses its link and cannot give up its
trunk adapter, as PAPR has it; then the operator's FORCED helps, or the channel.

For editors:
1. A transition is a row of `_NEXT`. Guards look; what a state does on entry is in `_enter`.
2. What the other said counts as an answer only if it had heard what it answers (`_answered`).
3. Time in which we did not run is not the other's silence (`advance`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from powervio.errors import LocalError, RemoteError
from powervio.network.sea_wire import MAX_CLIENTS, MAX_TRUNKS, Kind, Message, Mode, State, parse

_RANK = {Mode.FORCED: 0, Mode.AUTO: 1, Mode.SHARING: 1, Mode.STANDBY: 2}
_WRAP = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverOptions:
    """One adapter of a pair."""

    address: bytes
    """Of its control channel, or of anything of its own: no other has it."""
    pair: int = 1
    """Both have the same, and no other pair on the channel."""
    priority: int = 1
    """1 to 15; 1 is the highest."""
    mode: Mode = Mode.AUTO
    alone: bool = False
    """Whether there is no other."""
    heartbeat: float = 0.1
    """Seconds."""
    dead: float = 0.4
    """Seconds without a message of one that is dead."""
    settle: float = 1.0
    """Seconds for which a link that came back must stay before it is trusted, if the other's is there."""

    def check(self) -> None:
        """Raises `LocalError`."""
        if len(self.address) != 6 or self.address[0] & 1 or not any(self.address):
            raise LocalError(f"{self.address.hex(':')} is not the address of one device")
        if not 1 <= self.priority <= 15 or not 0 <= self.pair <= 0xFFFF:
            raise LocalError(f"priority {self.priority}, pair {self.pair}; expected 1 to 15, and up to 65535")
        if not 0 < self.heartbeat < self.dead or self.settle < 0:
            raise LocalError(
                f"heartbeat {self.heartbeat} s, dead after {self.dead} s; expected a multiple of the first"
            )


@dataclass(slots=True, eq=False)
class Trunk:
    """One trunk, by its PVID."""

    pvid: int
    state: State = State.INIT
    before: State = State.INIT
    since: float = 0.0
    sequence: int = 0
    """Of the message that was the first to tell of its state."""
    deposed: bool = False
    """The hypervisor has another one active, and the other was not heard since."""
    became_primary: int = 0
    became_backup: int = 0


@dataclass(slots=True)
class Peer:
    """What the other said last."""

    message: Message
    at: float
    """When; -inf if it is known to be gone."""
    trunks: dict[int, State] = field(default_factory=dict)


_Guard: TypeAlias = Callable[["Failover", Trunk], bool]

_NEXT: dict[State, tuple[tuple[_Guard, State], ...]] = {
    State.INIT: (
        (lambda it, _: it.listening, State.INIT),
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: it.claims(trunk) and it.is_free(trunk), State.PRIMARY),
        (lambda it, trunk: it.claims(trunk), State.RECOVERY),
        (lambda *_: True, State.BACKUP),
    ),
    State.LIMBO: (
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: it.claims(trunk) and it.is_free(trunk), State.PRIMARY),
        (lambda it, trunk: it.claims(trunk), State.RECOVERY),
        (lambda *_: True, State.BACKUP),
    ),
    State.BACKUP: (
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: it.claims(trunk) and it.is_free(trunk), State.PRIMARY),
        (lambda it, trunk: it.claims(trunk), State.RECOVERY),
    ),
    State.RECOVERY: (
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: not it.claims(trunk), State.BACKUP),
        (lambda it, trunk: it.is_free(trunk) or it.is_granted(trunk) or it.is_ignored(trunk), State.PRIMARY),
    ),
    State.NOTIFY: (
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: trunk.deposed or it.is_taken(trunk), State.BACKUP),
        (lambda it, trunk: not it.is_asked(trunk), State.PRIMARY),
    ),
    State.PRIMARY: (
        (lambda it, _: not it.healthy, State.LIMBO),
        (lambda it, trunk: trunk.deposed or it.is_taken(trunk), State.BACKUP),
        (lambda it, trunk: it.is_asked(trunk), State.NOTIFY),
    ),
}
"""The first guard that holds counts; if none does, nothing changes."""

_KINDS = ((State.LIMBO, Kind.LIMBO), (State.RECOVERY, Kind.RECOVERY), (State.NOTIFY, Kind.NOTIFY))


class Failover:
    """One adapter's part. It knows neither ports nor clocks: times are seconds that never go back."""

    def __init__(self, options: FailoverOptions, pvids: tuple[int, ...], now: float, incarnation: int = 1) -> None:
        """`incarnation`: another one in each life of the adapter. Raises `LocalError`."""
        options.check()
        if not 1 <= len(pvids) <= MAX_TRUNKS or len(set(pvids)) != len(pvids):
            raise LocalError(f"trunks {pvids}; expected 1 to {MAX_TRUNKS}, each once")
        self.options = options
        self.mode = options.mode
        self.trunks = {pvid: Trunk(pvid, since=now) for pvid in sorted(pvids)}
        self.peer: Peer | None = None
        self.received: dict[str, int] = {}
        """Messages by kind, and those that were dropped, by reason."""
        self.sent = 0
        self.bridging: frozenset[int] = frozenset()
        """Trunks that are bridged; replaced when it changes."""
        self._now = now
        self._last = now
        self._listen_until = now if options.alone else now + options.dead
        self._next_beat = now
        self._incarnation = incarnation
        self._sequence = 0
        self._told_sequence = -1
        self._link = False
        self._link_since = now
        self._link_was_lost = False
        self._trusted = False
        self._outbox: list[bytes] = []
        self._activate: list[int] = []
        self._release: list[int] = []

    # -- what happens

    def receive(self, data: bytes | memoryview, now: float) -> tuple[tuple[int, bytes], ...]:
        """A frame of the channel came; the clients that it told of."""
        self._now = now
        try:
            message = parse(data)
        except RemoteError:
            self._count("malformed")
            return ()
        reason = self._stranger(message)
        if reason:
            self._count(reason)
            return ()
        self._count(message.kind.name)
        if message.kind is Kind.CLIENTS:
            return message.clients
        self.peer = Peer(message, now, dict(message.trunks))
        for trunk in self.trunks.values():
            trunk.deposed = False
        self._settle()
        return ()

    def _stranger(self, message: Message) -> str:
        options = self.options
        if message.pair != options.pair:
            return "other pair"
        if options.alone or message.sender == options.address:
            return "own address"
        peer = self.peer
        if peer is None:
            return ""
        known = peer.message
        if known.sender != message.sender:
            return "third adapter" if self.is_alive else ""
        if known.incarnation == message.incarnation and (message.sequence - known.sequence) & _WRAP > _WRAP // 2:
            return "old"
        return ""

    def set_link(self, up: bool, now: float) -> None:
        """The uplink has a link, or none."""
        self._now = now
        if up != self._link:
            self._link = up
            self._link_since = now
            self._link_was_lost |= not up
            self._trusted = False
            self._settle()

    def request(self, mode: Mode, now: float) -> None:
        """What the operator wants from now on."""
        self._now = now
        self.mode = mode
        if mode is Mode.FORCED:
            for trunk in self.trunks.values():
                trunk.deposed = False
        self._settle()

    def deposed(self, pvid: int, now: float) -> None:
        """The hypervisor has another active trunk adapter in place of this one."""
        self._now = now
        trunk = self.trunks[pvid]
        if trunk.state.bridges:
            trunk.deposed = True
            self._settle()

    def elected(self, pvid: int, now: float) -> None:
        """The hypervisor made this trunk adapter the active one by itself: the other's is gone."""
        self._now = now
        trunk = self.trunks[pvid]
        trunk.deposed = False
        if not trunk.state.bridges and self.peer is not None:
            self.peer.at = float("-inf")
        self._settle()

    def advance(self, now: float) -> None:
        """Time has passed. What came in it must have been received before."""
        slept = now - self._last - 2 * self.options.heartbeat
        if slept > 0 and self.peer is not None:
            self.peer.at += slept
        self._last = self._now = now
        self._settle()
        if now >= self._next_beat:
            self._say()

    def due(self) -> float:
        """When `advance` has something to do."""
        times = [self._next_beat]
        if self.listening:
            times.append(self._listen_until)
        if self._link and not self.healthy:
            times.append(self._link_since + self.options.settle)
        if self.peer is not None and self.is_alive:
            times.append(self.peer.at + self.options.dead)
        return min(times)

    def take(self) -> list[bytes]:
        """Frames to be sent since the last time; before `take_activations`, so that the other knows why."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def take_activations(self) -> tuple[list[int], list[int]]:
        """Trunks that are to be made active, and that are not wanted to be, since the last time."""
        activate, self._activate = self._activate, []
        release, self._release = self._release, []
        return activate, release

    def tell_clients(self, clients: list[tuple[int, bytes]]) -> None:
        """Tell the other which addresses it would have to announce."""
        for start in range(0, len(clients), MAX_CLIENTS):
            self._send(Kind.CLIENTS, tuple(clients[start : start + MAX_CLIENTS]))

    # -- what guards look at

    @property
    def listening(self) -> bool:
        """Whether it is too early to say that there is no other."""
        return self._now < self._listen_until

    @property
    def is_alive(self) -> bool:
        """Whether the other is."""
        return self.peer is not None and self._now < self.peer.at + self.options.dead

    @property
    def healthy(self) -> bool:
        """Whether this one can bridge. A link that was lost is trusted again after a while, or when it is needed."""
        if not self._trusted and self._link:
            settled = not self._link_was_lost or self._now >= self._link_since + self.options.settle
            self._trusted = settled or not self._other_can_bridge()
        return self._trusted

    def _other_can_bridge(self) -> bool:
        peer = self.peer
        if peer is None or not self.is_alive or not peer.message.healthy:
            return False
        return State.INIT not in peer.trunks.values()

    @property
    def shares(self) -> bool:
        """Whether both want to share."""
        return self.mode is Mode.SHARING and self._is_sharing_peer()

    def _is_sharing_peer(self) -> bool:
        return self.peer is not None and self.is_alive and self.peer.message.mode is Mode.SHARING

    @property
    def has_better_claim(self) -> bool:
        """Than the other, before trunks are shared; whether or not it is alive."""
        if self.peer is None:
            return True
        theirs = self.peer.message
        options = self.options
        mine = (_RANK[self.mode], options.priority, options.address)
        return mine < (_RANK[theirs.mode], theirs.priority, theirs.sender)

    def _should(self, trunk: Trunk) -> bool:
        peer = self.peer
        if peer is None or not self.is_alive or not peer.message.healthy or trunk.pvid not in peer.trunks:
            return True
        if not self.shares:
            return self.has_better_claim
        common = [pvid for pvid in self.trunks if pvid in peer.trunks]
        return self.has_better_claim == (common.index(trunk.pvid) % 2 == 0)

    def claims(self, trunk: Trunk) -> bool:
        """Whether it should bridge, and may say so. One that the other does not hear leaves it what it has."""
        if trunk.deposed or not self._should(trunk):
            return False
        return self.is_free(trunk) or self._is_heard()

    def _is_heard(self) -> bool:
        return self.peer is not None and self.peer.message.heard == self.options.address

    def _theirs(self, trunk: Trunk) -> State | None:
        if self.peer is None or not self.is_alive:
            return None
        return self.peer.trunks.get(trunk.pvid)

    def is_free(self, trunk: Trunk) -> bool:
        """Whether the other does not bridge it."""
        theirs = self._theirs(trunk)
        return theirs is None or not theirs.bridges

    def _answered(self, trunk: Trunk) -> bool:
        """Whether the other has heard of the trunk's state, before it said what it said last."""
        if self.peer is None or not self._is_heard():
            return False
        return (self.peer.message.heard_sequence - trunk.sequence) & _WRAP <= _WRAP // 2

    def is_granted(self, trunk: Trunk) -> bool:
        """Whether the other has said yes."""
        return self._theirs(trunk) is State.NOTIFY and self._answered(trunk)

    def is_ignored(self, trunk: Trunk) -> bool:
        """Whether it was asked and has not said anything about it."""
        return self._now >= trunk.since + self.options.dead

    def is_asked(self, trunk: Trunk) -> bool:
        """Whether the other, which should bridge it, wants to."""
        return self._theirs(trunk) is State.RECOVERY and not self._should(trunk)

    def is_taken(self, trunk: Trunk) -> bool:
        """Whether the other bridges, and should."""
        return self._theirs(trunk) is State.PRIMARY and not self._should(trunk) and self._answered(trunk)

    # -- what is done

    def _settle(self) -> None:
        changed = False
        for trunk in self.trunks.values():
            for _ in range(len(_NEXT)):
                state = next((state for guard, state in _NEXT[trunk.state] if guard(self, trunk)), trunk.state)
                if state is trunk.state:
                    break
                changed = True
                self._enter(trunk, state)
        if changed:
            self.bridging = frozenset(trunk.pvid for trunk in self.trunks.values() if trunk.state.bridges)
            self._say()
        elif self._wants_answer():
            self._say()

    def _enter(self, trunk: Trunk, state: State) -> None:
        trunk.before, trunk.state = trunk.state, state
        trunk.since = self._now
        trunk.sequence = self._sequence + 1 & _WRAP
        if state is State.PRIMARY and not trunk.before.bridges:
            trunk.became_primary += 1
            self._activate.append(trunk.pvid)
        elif state is State.BACKUP:
            trunk.became_backup += 1
        elif state is State.LIMBO:
            self._release.append(trunk.pvid)

    def _wants_answer(self) -> bool:
        """Whether the other has asked for something since we spoke: it need not wait for the next heartbeat."""
        peer = self.peer
        if peer is None or peer.message.kind is not Kind.RECOVERY or not self.is_alive:
            return False
        return peer.message.sequence != self._told_sequence

    def _say(self) -> None:
        """Tell how it is."""
        self._next_beat = self._now + self.options.heartbeat
        if self.options.alone:
            return
        states = {trunk.state for trunk in self.trunks.values()}
        kind = next((kind for state, kind in _KINDS if state in states), Kind.KEEP_ALIVE)
        self._send(kind)

    def _send(self, kind: Kind, clients: tuple[tuple[int, bytes], ...] = ()) -> None:
        if self.options.alone:
            return
        self._sequence = self._sequence + 1 & _WRAP
        self.sent += 1
        heard, heard_sequence = bytes(6), 0
        if self.peer is not None and self.is_alive:
            heard, heard_sequence = self.peer.message.sender, self.peer.message.sequence
            self._told_sequence = heard_sequence
        trunks = tuple((trunk.pvid, trunk.state) for trunk in self.trunks.values())
        message = Message(
            kind,
            self.options.pair,
            self.options.address,
            self._incarnation,
            self._sequence,
            self.options.priority,
            self.mode,
            self.healthy,
            heard,
            heard_sequence,
            () if kind is Kind.CLIENTS else trunks,
            clients,
        )
        self._outbox.append(message.pack())

    def _count(self, what: str) -> None:
        self.received[what] = self.received.get(what, 0) + 1

    # -- who looks

    @property
    def state(self) -> str:
        """Of all of it, as the real one names it."""
        states = {trunk.state for trunk in self.trunks.values()}
        for state in (State.INIT, State.LIMBO, State.RECOVERY, State.NOTIFY):
            if state in states:
                return state.name
        shared = "_SH" if self.mode is Mode.SHARING else ""
        if states == {State.PRIMARY} or (State.PRIMARY in states and (self.has_better_claim or not shared)):
            return f"PRIMARY{shared}"
        return f"BACKUP{shared}"

    @property
    def bridge_mode(self) -> str:
        """All, Partial or None: of how many trunks."""
        if not self.bridging:
            return "None"
        return "All" if len(self.bridging) == len(self.trunks) else "Partial"
