"""The hypervisor's Ethernet switch: ports with VLANs, trunks, filters and bounds, from the threads of many partitions.

`switch_core` decides where a frame goes; here are the ports as devices see them, and what an operator does. A frame is
never copied, unless a tag has to be put in or taken out, and then once for all that get it so. Each port has a queue of
its own, with a limit: a receiver that is slow loses frames, which are counted, and holds up nobody.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from powervio.errors import LocalError
from powervio.network.alarm import Alarm
from powervio.network.frame import Frame
from powervio.network.line import Line, LineOptions
from powervio.network.port import Port
from powervio.network.switch_core import SwitchCore
from powervio.network.switch_decision import (
    DROP,
    LINE_FULL,
    LOST,
    NO_RECEIVER,
    ONE,
    QUEUE_FULL,
    REASONS,
    Decision,
)
from powervio.network.vlan import retagged

DEFAULT_NAME = "ETHERNET0"
MAX_VLAN = 4094
MAX_PRIORITY = 15
MAX_GROUPS = 255
"""Multicast addresses of one port (`ibm,mac-address-filters`)."""
_AGE = 300 * 10**9
_LEARNT = 64
_LEARNT_AT_TRUNK = 1024
_MIN_BURST = 128 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PortOptions:
    """What a port of the switch is."""

    name: str
    pvid: int = 1
    """The port's own VLAN: frames without a tag are in it."""
    vlans: tuple[int, ...] = ()
    """Others that it is in, with tags. Without any it is an untagged port, which never has a tag to see."""
    trunk: int = 0
    """Its priority as a trunk adapter, 1 to 15, 1 being the highest; 0: it is none."""
    standby: bool = False
    """Of a trunk: it does not become the active one by itself."""
    mac: bytes | None = None
    """The address of what is there. None: whatever it sends from is learnt."""
    spoof_check: bool = True
    """Whether frames with another source than `mac` are dropped."""
    all_groups: bool = True
    """Whether it gets all multicast frames of its VLANs; else those of groups that were joined."""
    rate: int = 0
    """Bytes a second that it may send; 0: as many as it can."""
    burst: int = 0
    """Bytes that it may send at once; 0: what goes in a tenth of a second."""
    storm: int = 0
    """Frames a second that it may send to all, or to addresses that nobody knows; 0: as many as it can."""
    line: LineOptions = field(default_factory=LineOptions)
    """What happens to frames on their way to it."""
    queue: int = 1024
    """Frames that wait for it at most."""
    mtu: int = 1500

    def check(self) -> None:
        """Raises `LocalError` for what cannot be."""
        for vlan in (self.pvid, *self.vlans):
            if not 1 <= vlan <= MAX_VLAN:
                raise LocalError(f"port {self.name}: VLAN {vlan}; expected 1 to {MAX_VLAN}")
        if not 0 <= self.trunk <= MAX_PRIORITY:
            raise LocalError(f"port {self.name}: priority {self.trunk}; expected 0 to {MAX_PRIORITY}")
        if self.mac is not None:
            _check_mac(self.mac)
        if self.queue < 1 or self.rate < 0 or self.burst < 0 or self.storm < 0:
            raise LocalError(f"port {self.name}: a queue of {self.queue} frames, or a bound below 0")
        self.line.check()


def _check_mac(mac: bytes) -> None:
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise LocalError(f"{mac.hex(':')} is no address of one device")


@dataclass(frozen=True, slots=True)
class PortCounters:
    """What became of a port's frames."""

    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    dropped: dict[str, int]
    """By reason; those that it sent, and those that were for it."""


class SwitchPort(Port):
    """One port, as its device uses it; see `Port`. Other ports' devices deliver frames from their threads."""

    def __init__(self, switch: Switch, number: int, options: PortOptions) -> None:
        super().__init__()
        self.name = options.name
        self.mtu = options.mtu
        self.number = number
        """In `SwitchCore`."""
        self.handle = 0
        """What it is called there when it sends."""
        self.options = options
        self.mac = options.mac
        self.switch = switch
        self.missed = 0
        """Receivers that did not get the frame that was sent last, though it was for them."""
        self.on_active: Callable[[frozenset[int]], None] | None = None
        """Of a trunk: called with the VLANs for which it is the active one, when these have changed, by who did it."""
        self.closed = False
        self._core = switch.core
        self._decide = switch.core.decide_frame
        self._decision = Decision(switch.core)
        self._clock = switch.clock
        self._frames: deque[Frame] = deque()
        self._limit = options.queue
        self._empty = True
        """Whether `receive` found nothing since `on_arrival` was called."""
        self._received_bytes = 0
        self._line = None if options.line.perfect else Line(options.line)
        self._line_lock = threading.Lock()
        self._waking: int | None = None
        self._last: tuple[int, ...] | None = None

    # -- its device

    def send(self, frame: Frame) -> bool:
        """See `Port`: True when somebody got the frame."""
        # Taken before the decision: if a port is gone since then, its number is that of the one that is closed.
        ports = self.switch.ports_by_number
        decision = self._decision
        kind = self._decide(decision, self.handle, frame, self._clock())
        if kind == DROP:
            self.missed = 0
            if self.closed:
                self.drop("closed")
            return False
        if kind == ONE:
            if decision.todo:
                frame = retagged(frame, decision.todo, decision.tci)
            return self.give(frame, ports[decision.egress])
        return self.flood(frame, decision, ports)

    def give(self, frame: Frame, receiver: SwitchPort | None) -> bool:
        """For who decides itself (`SwitchCore`), ONE: the port gets the frame, whose tag is as it has to be; True when
        it got it. `receiver` is what was at the number before the decision."""
        if receiver is not None and receiver.deliver(frame):
            self.missed = 0
            self.sent += 1
            return True
        self.missed = 1
        return self._unheard(receiver)

    def flood(self, frame: Frame, decision: Decision, ports: tuple[SwitchPort | None, ...]) -> bool:
        """The same of FLOOD: all receivers get the frame, as it was sent. `ports` were the switch's before the
        decision."""
        forms: list[Frame | None] = [None, None]
        receivers: list[tuple[SwitchPort | None, Frame]] = []
        while (number := decision.next()) >= 0:
            tagged = decision.takes_tagged(number)
            form = forms[tagged]
            if form is None:
                change = decision.change(tagged)
                form = forms[tagged] = retagged(frame, change, decision.tci) if change else frame
            receivers.append((ports[number], form))
        got = missed = 0
        for receiver, form in receivers:  # who is woken may send at once, which is another decision
            if receiver is not None and receiver.deliver(form):
                got += 1
            else:
                missed += 1
                self._unheard(receiver)
        self.missed = missed
        if got:
            self.sent += 1
        return got > 0

    def _unheard(self, receiver: SwitchPort | None) -> bool:
        """Somebody did not get a frame: it counts where there is still somebody."""
        if receiver is None or receiver.closed:
            self._core.miss(self.number, NO_RECEIVER)
        return False

    def receive(self) -> Frame | None:
        """See `Port`. `on_arrival` is called for what comes after this has returned None."""
        while True:
            if self._rest:
                frame = self._rest.popleft()
            else:
                try:
                    frame = self._frames.popleft()
                except IndexError:
                    if self._empty:
                        return None
                    self._empty = True  # and look again: who came before that has not called
                    continue
            fit = self._fit(frame) if frame.needs else frame
            if fit is not None:
                self.received += 1
                self._received_bytes += len(fit.data)
                return fit

    def deliver(self, frame: Frame) -> bool:
        """A frame for this port, with the tag that it gets; from any thread. False when there was no room."""
        if self._line is not None:
            return self._set_out(frame)
        return self._put(frame)

    def _put(self, frame: Frame) -> bool:
        if self.closed:
            return False
        if len(self._frames) >= self._limit:
            self._core.miss(self.number, QUEUE_FULL)
            return False
        self._frames.append(frame)
        if self._empty:
            self._empty = False
            arrived = self.on_arrival
            if arrived is not None:
                arrived()
        return True

    def _set_out(self, frame: Frame) -> bool:
        assert self._line is not None
        with self._line_lock:
            lost, refused = self._line.lost, self._line.refused
            self._line.put(frame, self._clock())
            lost, refused = self._line.lost - lost, self._line.refused - refused
            self._wake()
        for count, reason in ((lost, LOST), (refused, LINE_FULL)):
            for _ in range(count):
                self._core.miss(self.number, reason)
        return not lost and not refused

    def _wake(self) -> None:
        assert self._line is not None
        due = self._line.due()
        if due is not None and (self._waking is None or due < self._waking):
            self._waking = due
            self.switch.alarm.at(due, self._arrive)

    def _arrive(self) -> None:
        """Frames have come over the line, perhaps."""
        assert self._line is not None
        with self._line_lock:
            arrived = self._line.take(self._clock())
            self._waking = None
            self._wake()
        for frame in arrived:
            self._put(frame)

    def close(self) -> None:
        """See `Port`: it is gone from the switch."""
        self.switch.remove(self)

    # -- groups and the address

    def set_all_groups(self, wanted: bool) -> None:
        """Whether to get all multicast frames."""
        self.switch.set_all_groups(self, wanted)

    def set_groups(self, groups: Iterable[bytes]) -> None:
        """Get the frames of these multicast addresses, beside those of `set_all_groups`. Raises `LocalError`."""
        self.switch.set_groups(self, frozenset(groups))

    def set_mac(self, mac: bytes | None) -> None:
        """The address of what is there is another. Raises `LocalError` when it is somebody else's."""
        self.switch.set_mac(self, mac)

    # -- who looks

    @property
    def waiting(self) -> int:
        """Frames that wait to be received."""
        return len(self._frames)

    @property
    def active(self) -> frozenset[int]:
        """The VLANs for which this trunk is the active one."""
        return self.switch.active_vlans(self)

    def counters(self) -> PortCounters:
        """All that was counted since the port is there."""
        numbers = self._last or self._core.counters(self.number)
        dropped = {reason: count for reason, count in zip(REASONS, numbers[4:], strict=True) if count}
        for reason, count in self.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
        return PortCounters(
            sent=numbers[0],
            sent_bytes=numbers[1],
            received=numbers[2] + self.received,
            received_bytes=numbers[3] + self._received_bytes,
            dropped=dropped,
        )

    def end(self) -> None:
        """For the switch: the port is out of its tables."""
        self.closed = True
        self._last = self._core.counters(self.number)
        while self._frames:
            self._frames.popleft()
            self.drop("closed")
        if self._line is not None:
            with self._line_lock:
                for _ in range(len(self._line)):
                    self.drop("closed")


class Switch:
    """A switch. What changes it may be called from any thread."""

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        limit: int = 256,
        addresses: int = 8192,
        age: int = _AGE,
        clock: Callable[[], int] = time.monotonic_ns,
        alarm: Alarm | None = None,
        seed: int | None = None,
    ) -> None:
        """`limit`: ports at most; `addresses`: that are learnt at most, a power of two; `age`: nanoseconds without a
        frame after which one is forgotten; `clock`: nanoseconds; `alarm`: for lines with a delay.
        """
        self.name = name
        self.clock = clock
        self.alarm = alarm or Alarm(clock)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "big")
        self.core = SwitchCore(limit, addresses=addresses, age=age, seed=seed)
        self.ports_by_number: tuple[SwitchPort | None, ...] = (None,) * limit
        """What is at each number now; never changed, but replaced."""
        self._free: deque[int] = deque(range(limit))
        self._lock = threading.RLock()
        self._active: dict[int, SwitchPort] = {}
        self._chosen: dict[int, SwitchPort] = {}
        """Trunks that somebody activated, whatever their priority."""
        self._standing_by: set[tuple[int, SwitchPort]] = set()
        self._groups: dict[SwitchPort, frozenset[bytes]] = {}

    @property
    def ports(self) -> list[SwitchPort]:
        """All ports."""
        return [port for port in self.ports_by_number if port is not None]

    def add(self, options: PortOptions) -> SwitchPort:
        """A new port. Raises `LocalError` for what cannot be, beside the others that there are."""
        options.check()
        with self._lock:
            if not self._free:
                raise LocalError(f"switch {self.name} has {len(self.ports_by_number)} ports, and no more")
            vlans = _vlans(options)
            for other in self.ports:
                if options.trunk and other.options.trunk == options.trunk and vlans & _vlans(other.options):
                    raise LocalError(
                        f"port {options.name}: {other.name} is the trunk of priority {options.trunk} already"
                    )
            self._check_mac_is_free(options.mac, vlans, None)
            port = SwitchPort(self, self._free.popleft(), options)
            burst = options.burst or max(options.rate // 10, _MIN_BURST)
            self.core.set_port(
                port.number,
                pvid=options.pvid,
                vlans=frozenset(options.vlans),
                address=_number(options.mac),
                checked=options.mac is not None and options.spoof_check,
                trunk=options.trunk > 0,
                may_learn=_LEARNT_AT_TRUNK if options.trunk else _LEARNT,
                rate=options.rate,
                burst=burst,
                storm=options.storm,
            )
            port.handle = self.core.handle(port.number)
            if not options.all_groups:
                self.core.set_all_groups(port.number, False)
            self._place(port.number, port)
            self._set_fixed()
            if options.standby:
                self._standing_by |= {(vlan, port) for vlan in vlans}
            changed = self._elect(vlans) if options.trunk else set()
        _tell(changed)
        return port

    def remove(self, port: SwitchPort) -> None:
        """A port goes, with what waits for it. What it was the active trunk of has the next one."""
        with self._lock:
            if port.closed:
                return
            vlans = _vlans(port.options)
            self._place(port.number, None)
            self._groups.pop(port, None)
            self._set_groups()
            self._set_fixed()
            self._standing_by -= {(vlan, port) for vlan in vlans}
            for vlan in vlans:
                if self._chosen.get(vlan) is port:
                    del self._chosen[vlan]
            changed = self._elect(vlans) if port.options.trunk else set()
            self.core.clear_port(port.number)
            port.end()
            self._free.append(port.number)
            changed.discard(port)
        _tell(changed)

    def close(self) -> None:
        """All ports go."""
        for port in self.ports:
            self.remove(port)
        self.alarm.close()

    def _place(self, number: int, port: SwitchPort | None) -> None:
        ports = list(self.ports_by_number)
        ports[number] = port
        self.ports_by_number = tuple(ports)

    # -- trunks

    def activate(self, port: SwitchPort, vlans: Iterable[int] | None = None) -> None:
        """Make a trunk the active one of its VLANs, or of some of them, until it is deactivated or another one is
        activated, whatever their priorities are. Who was it before is told. Raises `LocalError`.
        """
        with self._lock:
            which = self._some(port, vlans)
            self._standing_by -= {(vlan, port) for vlan in which}
            self._chosen |= dict.fromkeys(which, port)
            changed = self._elect(which)
        _tell(changed)

    def deactivate(self, port: SwitchPort, vlans: Iterable[int] | None = None) -> None:
        """Have a trunk stand by; the one with the highest priority of those that do not takes its place."""
        with self._lock:
            which = self._some(port, vlans)
            self._standing_by |= {(vlan, port) for vlan in which}
            for vlan in which:
                if self._chosen.get(vlan) is port:
                    del self._chosen[vlan]
            changed = self._elect(which)
        _tell(changed)

    def active(self, vlan: int) -> SwitchPort | None:
        """The active trunk of a VLAN."""
        return self._active.get(vlan)

    def active_vlans(self, port: SwitchPort) -> frozenset[int]:
        """The VLANs whose active trunk a port is."""
        with self._lock:
            return frozenset(vlan for vlan, trunk in self._active.items() if trunk is port)

    def _some(self, port: SwitchPort, vlans: Iterable[int] | None) -> set[int]:
        if port.closed or not port.options.trunk:
            raise LocalError(f"port {port.name} is no trunk")
        mine = _vlans(port.options)
        which = mine if vlans is None else set(vlans)
        if not which <= mine:
            raise LocalError(f"port {port.name} is not in VLANs {sorted(which - mine)}")
        return which

    def _elect(self, vlans: Iterable[int]) -> set[SwitchPort]:
        """Settle who is active in each; returns the ports that are, or are not any more."""
        changed: set[SwitchPort] = set()
        trunks = sorted((port for port in self.ports if port.options.trunk), key=lambda port: port.options.trunk)
        for vlan in vlans:
            candidates = [
                port for port in trunks if vlan in _vlans(port.options) and (vlan, port) not in self._standing_by
            ]
            winner = self._chosen.get(vlan) or (candidates[0] if candidates else None)
            before = self._active.get(vlan)
            if winner is before:
                continue
            self.core.set_trunk(vlan, -1 if winner is None else winner.number)
            if winner is None:
                del self._active[vlan]
            else:
                self._active[vlan] = winner
            changed |= {port for port in (before, winner) if port is not None}
        return changed

    # -- addresses and groups

    def set_mac(self, port: SwitchPort, mac: bytes | None) -> None:
        """See `SwitchPort.set_mac`."""
        if mac is not None:
            _check_mac(mac)
        with self._lock:
            if port.closed:
                return
            if mac is None and port.options.mac is not None and port.options.spoof_check:
                raise LocalError(f"port {port.name} is checked, and so has an address")
            self._check_mac_is_free(mac, _vlans(port.options), port)
            port.mac = mac
            self.core.set_address(port.number, _number(mac))
            self._set_fixed()

    def _check_mac_is_free(self, mac: bytes | None, vlans: set[int], but: SwitchPort | None) -> None:
        for other in self.ports:
            if mac is not None and other.mac == mac and other is not but and vlans & _vlans(other.options):
                raise LocalError(f"{mac.hex(':')} is the address of port {other.name}, in the same VLAN")

    def _set_fixed(self) -> None:
        self.core.set_fixed(
            {
                vlan << 48 | _number(port.mac): port.number
                for port in self.ports
                if port.mac is not None
                for vlan in _vlans(port.options)
            }
        )

    def set_all_groups(self, port: SwitchPort, wanted: bool) -> None:
        """See `SwitchPort.set_all_groups`."""
        with self._lock:
            if not port.closed:
                self.core.set_all_groups(port.number, wanted)

    def set_groups(self, port: SwitchPort, groups: frozenset[bytes]) -> None:
        """See `SwitchPort.set_groups`."""
        if len(groups) > MAX_GROUPS:
            raise LocalError(f"port {port.name}: {len(groups)} multicast addresses; expected at most {MAX_GROUPS}")
        for group in groups:
            if len(group) != 6 or not group[0] & 1:
                raise LocalError(f"{group.hex(':')} is no multicast address")
        with self._lock:
            if not port.closed:
                self._groups[port] = groups
                self._set_groups()

    def _set_groups(self) -> None:
        wanted: dict[int, set[int]] = {}
        for port, groups in self._groups.items():
            for group in groups:
                wanted.setdefault(_number(group), set()).add(port.number)
        self.core.set_groups({group: frozenset(ports) for group, ports in wanted.items()})

    def learnt(self) -> list[tuple[int, bytes, SwitchPort]]:
        """Addresses that are known because somebody sent from them: VLAN, address, port."""
        ports = self.ports_by_number
        found = []
        for vlan, address, number in self.core.learnt(self.clock()):
            port = ports[number]
            if port is not None:
                found.append((vlan, address.to_bytes(6, "big"), port))
        return sorted(found, key=lambda entry: entry[:2])


def _vlans(options: PortOptions) -> set[int]:
    return {options.pvid, *options.vlans}


def _number(mac: bytes | None) -> int:
    return int.from_bytes(mac or b"", "big")


def _tell(changed: set[SwitchPort]) -> None:
    for port in sorted(changed, key=lambda port: port.number):
        if port.on_active is not None:
            port.on_active(port.active)
