"""The Shared Ethernet Adapter: it bridges VLANs of the hypervisor's switch to a real network, alone or in a pair.

Frames go from trunk adapters to the uplink and back, never from one trunk to another and never where they came from. On
the uplink the adapter's own VLAN has no tag, all others have theirs. What is left to do of a frame, checksum or
segmentation, goes along, and a tag is put in or out only where both sides differ, so most frames are not touched.

Which of a pair bridges is `sea_failover`'s. One that takes over drops what waits at its uplink, since the other may
have bridged that already, activates its trunks, and announces their clients: a RARP request from each address, by which
switches outside learn where it is now. It knows these from what it has bridged, from its partner, and from the
hypervisor's switch if it is given that.

It has no threads and no clock: the owner calls `poll` when there are frames, and `advance` when `due` says so.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from powervio.errors import LocalError
from powervio.network.port import ETHERNET_BYTES, Frame, Offload, Port
from powervio.network.sea_failover import Failover, FailoverOptions
from powervio.network.sea_wire import ETHERTYPE, Mode
from powervio.network.switch_decision import PUSH, REPLACE, STRIP
from powervio.network.vlan import retagged

ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN | Offload.USO4 | Offload.USO6
BUDGET = 64
"""Frames of one port in one turn."""
_MAX_VLAN = 4094
_MAX_LEARNT = 8192
_MAX_ANNOUNCED = 4096
_DRAINED = 100_000
_AGE = 300.0
_REFLECTED = 1.0
"""Seconds for which a client's address that comes from outside is the echo of its own frame, and not the client that
moved."""
_ANNOUNCE_AGAIN = 0.3
_TELL_CLIENTS = 5.0
_TELL_NEW_CLIENTS = 0.1
_TAG = b"\x81\x00"
_NEXT_BRIDGE = b"\x01\x80\xc2\x00\x00"
_RARP = bytes.fromhex("8035 0001 0800 06 04 0003")


class TrunkControl(Protocol):
    """What a trunk adapter's owner may ask of the hypervisor."""

    def activate(self) -> None:
        """Make it the active trunk of its VLANs; the one before is told. Raises `LocalError`."""

    def release(self) -> None:
        """It need not be the active one; whether another one can be is the hypervisor's matter."""

    def is_active(self) -> bool:
        """Whether it is."""


@dataclass(slots=True, eq=False)
class SideCounters:
    """Frames of one side, as `entstat` has them."""

    received: int = 0
    bridged: int = 0
    """That came from here and went on."""
    consumed: int = 0
    """That were for the adapter itself."""
    transmitted: int = 0
    """That went out here."""
    dropped: dict[str, int] = field(default_factory=dict)
    """That came from here, by reason."""

    def drop(self, reason: str) -> None:
        """Count one."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


@dataclass(slots=True, eq=False)
class TrunkAdapter:
    """One trunk adapter of the switch."""

    port: Port
    pvid: int
    """The VLAN of its frames without a tag; it names the trunk, and is the same in the other adapter of a pair."""
    vlans: tuple[int, ...]
    """Its VLANs with tags."""
    control: TrunkControl
    bridges: bool = False

    @property
    def all_vlans(self) -> frozenset[int]:
        """All."""
        return frozenset((self.pvid, *self.vlans))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeaOptions:
    """One adapter."""

    name: str
    pvid: int = 1
    """The VLAN that has no tag on the uplink."""
    age: float = _AGE
    """Seconds without a frame after which an address is forgotten."""


class Sea:
    """The adapter. All calls but those of ports' `on_arrival` and `note` are for one thread."""

    def __init__(
        self,
        options: SeaOptions,
        trunks: Sequence[TrunkAdapter],
        uplink: Port,
        failover: FailoverOptions,
        control: Port | None = None,
        *,
        clients: Callable[[], Iterable[tuple[int, bytes]]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`control`: the control channel, None for one without a partner; `clients`: VLAN and address of those that the
        switch knows of. Raises `LocalError`.
        """
        if control is None and not failover.alone:
            raise LocalError(f"{options.name}: an adapter of a pair needs a control channel")
        self.options = options
        self.trunks = tuple(trunks)
        self.uplink = uplink
        self.real = SideCounters()
        self.virtual = SideCounters()
        self.control_dropped = 0
        self.announced = 0
        self.refused = 0
        """Activations that the hypervisor refused."""
        self._control = control
        self._clients = clients
        self._clock = clock
        self._by_pvid = {trunk.pvid: trunk for trunk in trunks}
        self._by_vlan: dict[int, TrunkAdapter] = {}
        self._check()
        self._now = clock()
        incarnation = int.from_bytes(os.urandom(4), "big")
        self.failover = Failover(failover, tuple(self._by_pvid), self._now, incarnation)
        # where an address was seen last: VLAN and address -> inside or not, when
        self._learnt: dict[tuple[int, bytes], tuple[bool, float]] = {}
        self._told: dict[tuple[int, bytes], float] = {}
        self._announce_at: dict[int, list[float]] = {}
        self._noted: deque[int] = deque()
        self._next_tell = self._now
        self._next_age = self._now + options.age
        for port in (uplink, *(trunk.port for trunk in trunks)):
            port.take(ALL)

    def _check(self) -> None:
        for trunk in self.trunks:
            for vlan in trunk.all_vlans:
                if not 1 <= vlan <= _MAX_VLAN or vlan in self._by_vlan:
                    raise LocalError(f"{self.options.name}: VLAN {vlan} is in two trunks, or is none")
                self._by_vlan[vlan] = trunk

    # -- what happens

    def set_link(self, up: bool) -> None:
        """The uplink has a link, or none."""
        self._now = self._clock()
        self.failover.set_link(up, self._now)
        self._carry_out()

    def request(self, mode: Mode) -> None:
        """What the operator wants."""
        self._now = self._clock()
        self.failover.request(mode, self._now)
        self._carry_out()

    def note(self, pvid: int) -> None:
        """The hypervisor has changed something about a trunk; from any thread. `poll` looks what it was."""
        self._noted.append(pvid)

    def announce(self) -> None:
        """The clients are to be announced, because the network outside has changed (a bond's `on_move`)."""
        self._now = self._clock()
        for trunk in self.trunks:
            if trunk.bridges:
                self._announce(trunk)

    def due(self) -> float:
        """When `advance` has something to do."""
        times = [self.failover.due(), *(at[0] for at in self._announce_at.values())]
        if self._control is not None and self.failover.bridging:
            times.append(self._next_tell)
        return min(times)

    def advance(self) -> None:
        """Time has passed."""
        self._now = now = self._clock()
        self._hear()  # before silence is judged
        self.failover.advance(now)
        self._carry_out()
        for pvid in [pvid for pvid, at in self._announce_at.items() if at[0] <= now]:
            self._announce_at[pvid].pop(0)
            if not self._announce_at[pvid]:
                del self._announce_at[pvid]
            self._send_announcements(self._by_pvid[pvid])
        if now >= self._next_tell and self.failover.bridging:
            self._next_tell = now + _TELL_CLIENTS
            self.failover.tell_clients(self._known_clients(self.failover.bridging))
            self._carry_out()
        if now >= self._next_age:
            self._forget()

    def poll(self, budget: int = BUDGET) -> bool:
        """Bridge what has come, so many frames of each port; whether there may be more. Raises `OSError` when the
        uplink is of no use any more.
        """
        self._now = self._clock()
        more = self._hear()
        more |= self._from_uplink(budget)
        for trunk in self.trunks:
            more |= self._from_trunk(trunk, budget)
        return more

    # -- the channel and the hypervisor

    def _hear(self) -> bool:
        """Messages first, and then what the hypervisor has to say: a partner speaks before it acts."""
        control = self._control
        more = False
        if control is not None:
            count = 0
            while count < BUDGET and (frame := control.receive()) is not None:
                count += 1
                if frame.data[12:14] != ETHERTYPE:
                    self.control_dropped += 1
                    continue
                for vlan, mac in self.failover.receive(frame.data, self._now):
                    if len(self._told) < _MAX_ANNOUNCED or (vlan, mac) in self._told:
                        self._told[vlan, mac] = self._now
            more = count == BUDGET
        while self._noted:
            pvid = self._noted.popleft()
            trunk = self._by_pvid[pvid]
            active = trunk.control.is_active()
            if active and not trunk.bridges:
                self.failover.elected(pvid, self._now)
            elif trunk.bridges and not active:
                self.failover.deposed(pvid, self._now)
        self._carry_out()
        return more

    def _carry_out(self) -> None:
        failover = self.failover
        for message in failover.take():
            if self._control is not None and not self._control.send(Frame(message)):
                self.control_dropped += 1
        for trunk in self.trunks:
            trunk.bridges = trunk.pvid in failover.bridging
        activate, release = failover.take_activations()
        if activate:
            self._drain_uplink(activate)
        for pvid in activate:
            if pvid in failover.bridging:
                trunk = self._by_pvid[pvid]
                try:
                    trunk.control.activate()
                except LocalError:
                    self.refused += 1
                    self._noted.append(pvid)  # it is not the active one, and will be told so
                else:
                    self._announce(trunk)
        for pvid in release:
            if pvid not in failover.bridging:
                self._by_pvid[pvid].control.release()
                self._announce_at.pop(pvid, None)

    def _drain_uplink(self, taken: list[int]) -> None:
        """Drop what came before trunks were taken over; frames of those that were bridged already go on."""
        for trunk in self.trunks:
            trunk.bridges = trunk.bridges and trunk.pvid not in taken
        for _ in range(_DRAINED // BUDGET):
            if not self._from_uplink(BUDGET):
                break
        for trunk in self.trunks:
            trunk.bridges = trunk.pvid in self.failover.bridging

    # -- announcements

    def _known_clients(self, pvids: frozenset[int]) -> list[tuple[int, bytes]]:
        vlans = {vlan for pvid in pvids for vlan in self._by_pvid[pvid].all_vlans}
        now = self._now
        found = dict.fromkeys(
            [key for key, (inside, seen) in self._learnt.items() if inside and now - seen < self.options.age]
        )
        found |= dict.fromkeys(key for key, seen in self._told.items() if now - seen < self.options.age)
        found |= dict.fromkeys(self._clients())
        return [key for key in found if key[0] in vlans][:_MAX_ANNOUNCED]

    def _announce(self, trunk: TrunkAdapter) -> None:
        self._send_announcements(trunk)
        self._announce_at[trunk.pvid] = [self._now + _ANNOUNCE_AGAIN]

    def _send_announcements(self, trunk: TrunkAdapter) -> None:
        if not trunk.bridges:
            return
        for vlan, mac in self._known_clients(frozenset((trunk.pvid,))):
            known = self._learnt.get((vlan, mac))
            if known is not None and not known[0] and self._now - known[1] < self.options.age:
                continue  # it has moved away
            self._learn((vlan, mac), True)
            frame = announcement(mac, 0 if vlan == self.options.pvid else vlan)
            if self.uplink.send(frame):
                self.announced += 1
                self.real.transmitted += 1

    # -- frames

    def _learn(self, key: tuple[int, bytes], inside: bool) -> None:
        if key in self._learnt or len(self._learnt) < _MAX_LEARNT:
            self._learnt[key] = (inside, self._now)

    def _forget(self) -> None:
        self._next_age = self._now + self.options.age / 10
        oldest = self._now - self.options.age
        self._learnt = {key: entry for key, entry in self._learnt.items() if entry[1] > oldest}
        self._told = {key: seen for key, seen in self._told.items() if seen > oldest}

    def _from_trunk(self, trunk: TrunkAdapter, budget: int) -> bool:
        side, uplink, own = self.virtual, self.uplink, self.options.pvid
        receive = trunk.port.receive
        for _ in range(budget):
            frame = receive()
            if frame is None:
                return False
            side.received += 1
            if not trunk.bridges:
                side.drop("not primary")
                continue
            data = frame.data
            tagged = data[12:14] == _TAG
            tci = (data[14] << 8 | data[15]) if tagged and len(data) > 15 else 0
            vlan = tci & 0xFFF or trunk.pvid
            if len(data) < ETHERNET_BYTES or self._by_vlan.get(vlan) is not trunk:
                side.drop("foreign VLAN" if len(data) >= ETHERNET_BYTES else "too short")
                continue
            source = (vlan, bytes(data[6:12]))
            known = self._learnt.get(source)
            if known is None or not known[0]:
                self._next_tell = min(self._next_tell, self._now + _TELL_NEW_CLIENTS)
            self._learn(source, True)
            frame = _with_tag(frame, tagged, 0 if vlan == own else vlan, tci)
            if uplink.send(frame):
                side.bridged += 1
                self.real.transmitted += 1
            else:
                side.drop("lost by the uplink")
        return True

    def _from_uplink(self, budget: int) -> bool:
        side, own = self.real, self.options.pvid
        receive = self.uplink.receive
        for _ in range(budget):
            frame = receive()
            if frame is None:
                return False
            side.received += 1
            data = frame.data
            tagged = data[12:14] == _TAG
            tci = (data[14] << 8 | data[15]) if tagged and len(data) > 15 else 0
            vlan = tci & 0xFFF or own
            trunk = self._by_vlan.get(vlan)
            if trunk is None or len(data) < ETHERNET_BYTES:
                side.drop("foreign VLAN" if len(data) >= ETHERNET_BYTES else "too short")
            elif not trunk.bridges:
                side.drop("not primary")
            elif data[:5] == _NEXT_BRIDGE and data[5] < 0x10:
                side.drop("for the next bridge")
            elif self._stays_outside(vlan, data):
                side.drop("not for here")
            else:
                frame = _with_tag(frame, tagged, 0 if vlan == trunk.pvid else vlan, tci)
                if trunk.port.send(frame):
                    side.bridged += 1
                    self.virtual.transmitted += 1
                else:
                    side.drop("lost by the switch")
        return True

    def _stays_outside(self, vlan: int, data: bytes | memoryview) -> bool:
        """Whether it is the echo of a client's frame, or for somebody outside."""
        source = (vlan, bytes(data[6:12]))
        known = self._learnt.get(source)
        if known is not None and known[0] and self._now - known[1] < _REFLECTED:
            return True
        self._learn(source, False)
        if data[0] & 1:
            return False
        there = self._learnt.get((vlan, bytes(data[:6])))
        return there is not None and not there[0] and self._now - there[1] < self.options.age


def _with_tag(frame: Frame, tagged: bool, vlan: int, tci: int) -> Frame:
    """The frame with the tag of a VLAN, or without one for 0; its priority stays."""
    if not vlan:
        return retagged(frame, STRIP, 0) if tagged else frame
    if not tagged:
        return retagged(frame, PUSH, vlan)
    return frame if tci & 0xFFF == vlan else retagged(frame, REPLACE, tci & 0xF000 | vlan)


def announcement(mac: bytes, vlan: int) -> Frame:
    """A RARP request (RFC 903) of an address for itself, to all: whoever switches it learns where the address is."""
    tag = _TAG + vlan.to_bytes(2, "big") if vlan else b""
    rest = _RARP + mac + bytes(4) + mac + bytes(4)
    return Frame(b"".join((b"\xff" * 6, mac, tag, rest)).ljust(60, b"\0"))
