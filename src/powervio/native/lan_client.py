"""A logical LAN adapter as its partition uses it: a port, as Linux's ibmveth drives one (papr-vio 7.6).

Receive buffers are mapped once, in pools of equal sizes; what was used is added again many at a time. One buffer is
there to send from, since the hypervisor has the frame when H_SEND_LOGICAL_LAN returns. TCP goes without a checksum,
and in one piece of up to 64 KiB (large send).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.native.lan_ring import BAD, CANNOT, LanRing
from powervio.network.frame import Frame, Offload
from powervio.network.port import Port
from powervio.network.segment import fitted
from powervio.papr import lan
from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.papr.lan import Attribute
from powervio.papr.nodes import VdeviceNode
from powervio.papr.tce import TCE_READ
from powervio.papr.vioctl import Vioctl, output_descriptor
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.vio.kernel import PartitionKernel

_SUCCESS = int(ReturnCode.H_SUCCESS)
_BUSY = int(ReturnCode.H_BUSY)
_DROPPED = int(ReturnCode.H_DROPPED)
_CONSTRAINED = int(ReturnCode.H_CONSTRAINED)
_FUNCTION = int(ReturnCode.H_FUNCTION)
_HARDWARE = int(ReturnCode.H_HARDWARE)
_IN_PROGRESS = int(ReturnCode.H_IN_PROGRESS)
_LONG_BUSY = range(ReturnCode.H_LONG_BUSY_ORDER_1_MSEC, ReturnCode.H_LONG_BUSY_ORDER_100_SEC + 1)

LARGEST = (lan.MAX_FRAME + lan.MESSAGE_OFFSET_MSS + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
"""Bytes of a buffer for the largest frame."""
_SCAN = struct.Struct(">QQ16sQ")
_BATCH = lan.ADD_DESCRIPTORS
_MOST_CALLS = 1000
"""For one frame, with a token each: each of them did a part of the work."""
_MOST_FREES = 5
_OFFLOADED = Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6 | Attribute.LARGE


@dataclass(frozen=True, slots=True)
class BufferPool:
    """Receive buffers of one size."""

    size: int
    """Bytes, a multiple of 16."""
    count: int


DEFAULT_POOLS = (BufferPool(512, 128), BufferPool(2048, 256), BufferPool(LARGEST, 32))
"""2.8 MiB."""


class LanPort(Port):
    """The port behind one adapter, in the thread of its partition. `start` makes it usable."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        *,
        pools: Iterable[BufferPool] = DEFAULT_POOLS,
        mac: bytes | None = None,
        mtu: int = 1500,
    ) -> None:
        """`mac`: another one than the node's. Raises `LocalError` for a node that is none of a logical LAN."""
        super().__init__()
        address = node.property(lan.LOCAL_MAC_ADDRESS)
        if node.name != lan.NODE_NAME or address is None or len(address) < 6:
            raise LocalError(f"{node.location_code} ({node.name}) is no logical LAN adapter")
        self.node = node
        self.name = f"{node.name}@{node.unit_address:x}"
        self.mtu = mtu
        self.mac = mac or address[-6:]
        self.trunk = node.property(lan.TRUNK_ADAPTER) is not None
        """Whether it may send from foreign addresses, and gets what is for nobody else."""
        self.attributes = 0
        """See `lan.Attribute`; as they were looked at last."""
        self.on_active: Callable[[bool], None] | None = None
        """Of a trunk: called in the partition's thread when it became the active one of its VLANs, or is not any
        more."""
        self._kernel = kernel
        self._hcalls = kernel.port
        self._pools = tuple(sorted(pools, key=lambda pool: pool.size))
        self._space = DmaSpace(kernel.port, kernel.pages, node.windows[0])
        self._memory: list[DmaMemory] = []
        self._transmit: tuple[int, int] | None = None
        self._ring: LanRing | None = None
        self._multi = True
        self._threshold = 1
        self._sends = Offload(0)

    # -- its life

    def start(self) -> None:
        """Register the adapter and give it its buffers. Raises `LocalError`, `HcallError`."""
        if self._ring is not None:
            return
        self._hcalls.free_logical_lan(self.node.unit_address)  # an earlier life may have left it registered
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        ua = self.node.unit_address
        code, self.attributes = self._hcalls.illan_attributes(ua, 0, 0)
        if code == _SUCCESS:
            wanted = Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6
            if self.attributes & Attribute.LARGE_SUPPORTED:
                wanted |= Attribute.LARGE
            code, self.attributes = self._hcalls.illan_attributes(ua, 0, wanted)
        if code not in (_SUCCESS, _CONSTRAINED):
            self.attributes = 0
        self._multi = bool(self.attributes & Attribute.RX_MULTI)
        self._sends = self._offloads()

        lists = self._allocate(2 * PAGE_SIZE)
        entries = sum(pool.count for pool in self._pools) + 1
        queue = self._allocate(entries * lan.ENTRY_SIZE)
        buffers: list[tuple[int, int, int]] = []
        for pool in self._pools:
            memory = self._allocate(pool.size * pool.count)
            buffers += [
                (memory.address + pool.size * at, memory.ioba + pool.size * at, pool.size) for at in range(pool.count)
            ]
        address = self._kernel.pages.allocate(LARGEST)
        self._transmit = address, 0
        ioba = self._space.map(address, LARGEST, TCE_READ)
        self._transmit = address, ioba
        self._ring = LanRing(
            self._hcalls.memory,
            queue.address,
            entries,
            buffers,
            (address, ioba, lan.MAX_FRAME),
            self.attributes,
        )
        code = self._hcalls.register_logical_lan(
            ua,
            lists.ioba,
            lan.descriptor(entries * lan.ENTRY_SIZE, queue.ioba),
            lists.ioba + PAGE_SIZE,
            int.from_bytes(self.mac, "big"),
        )
        if code:
            raise HcallError(Hcall.H_REGISTER_LOGICAL_LAN, code)
        self._drops_at = lists.address + lan.DROP_COUNTER
        shown = self.node.property(lan.ATTRIBUTES)
        self._shown_at = 0 if shown is None else lists.address + int.from_bytes(shown, "big")
        self._threshold = max(1, min(_BATCH, min(pool.count for pool in self._pools) // 4))
        while self._ring.spare:
            if not self._refill():
                raise LocalError(f"{self.name}: the hypervisor takes no buffers")
        self._kernel.request_interrupt(self.node.interrupt, self._interrupt)
        self._hcalls.vio_signal(ua, 1)
        self.set_all_groups(True)
        self.look()

    def _allocate(self, length: int) -> DmaMemory:
        memory = self._space.allocate(length)
        self._memory.append(memory)
        return memory

    def close(self) -> None:
        """Leave the LAN, and give back all memory."""
        for _ in range(_MOST_FREES):
            code = self._hcalls.free_logical_lan(self.node.unit_address)
            if code != _BUSY and code not in _LONG_BUSY:
                break
        self._kernel.free_interrupt(self.node.interrupt)
        self._ring = None
        self._shown_at = 0
        self._rest.clear()
        if self._transmit is not None:
            address, ioba = self._transmit
            self._transmit = None
            with suppress(HcallError):  # what cannot be unmapped is not used for anything else
                if ioba:
                    self._space.unmap(ioba, LARGEST)
                self._kernel.pages.free(address, LARGEST)
        while self._memory:
            with suppress(HcallError):
                self._space.release(self._memory.pop())

    @property
    def running(self) -> bool:
        """Whether it was started."""
        return self._ring is not None

    def _offloads(self) -> Offload:
        found = Offload(0)
        if self.attributes & (Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6):
            found |= Offload.CSUM
            if self.attributes & Attribute.LARGE:
                found |= Offload.ECN
                found |= Offload.TSO4 if self.attributes & Attribute.CHECKSUM_IPV4 else Offload(0)
                found |= Offload.TSO6 if self.attributes & Attribute.CHECKSUM_IPV6 else Offload(0)
        return found

    # -- receiving

    def _interrupt(self) -> None:
        ring = self._ring
        if ring is None:
            return
        waits = ring.waits()
        if self.trunk and (self._shown_at or not waits):
            self.look()
        if waits and self.on_arrival is not None:
            self.on_arrival()

    def receive(self) -> Frame | None:
        """See `Port`."""
        ring = self._ring
        if self._rest:
            return self._given(self._rest.popleft())
        while ring is not None:
            frame = ring.next()
            if ring.spare >= self._threshold:
                self._refill()
            if isinstance(frame, Frame):
                fit = self._fit(frame) if frame.needs & ~self.taken else frame
                if fit is not None:
                    return self._given(fit)
            elif frame == BAD:
                self.drop("bad entry")
            else:
                break
        return None

    def _given(self, frame: Frame) -> Frame:
        self.received += 1
        return frame

    def _refill(self) -> bool:
        """Give the hypervisor up to eight buffers; whether it took them."""
        ring = self._ring
        assert ring is not None
        descriptors = [found for _ in range(_BATCH) if (found := ring.lend())]
        ua = self.node.unit_address
        if self._multi:
            code = self._hcalls.add_logical_lan_buffers(ua, *descriptors)
            if code == _SUCCESS:
                return True
            self._multi = code != _FUNCTION
            if self._multi:
                return self._untaken(descriptors, 0)
        for at, descriptor in enumerate(descriptors):
            if self._hcalls.add_logical_lan_buffer(ua, descriptor):
                return self._untaken(descriptors, at)
        return True

    def _untaken(self, descriptors: list[int], first: int) -> bool:
        """A refusal, as after the adapter was unplugged: nothing comes into these any more."""
        ring = self._ring
        if ring is not None:
            for descriptor in descriptors[first:]:
                ring.take_back(descriptor)
            self._threshold = ring.count + 1
        self.drop("no buffers")
        return False

    @property
    def no_buffer(self) -> int:
        """Frames that the hypervisor had no buffer for since `start`."""
        if self._ring is None:
            return 0
        return int.from_bytes(self._hcalls.memory[self._drops_at : self._drops_at + 8], "big")

    _drops_at = _shown_at = 0

    # -- sending

    def send(self, frame: Frame) -> bool:
        """See `Port`: True when everybody got it who should."""
        ring = self._ring
        if ring is None:
            return self.drop("not started")
        descriptor = ring.fill(frame)
        if descriptor == CANNOT:
            return self._send_parts(frame)
        ua = self.node.unit_address
        code, token = self._hcalls.send_logical_lan(ua, (descriptor,), 0, frame.gso_size)
        calls = 1
        while code == _BUSY and token and calls < _MOST_CALLS:  # without a token the hypervisor does not answer
            calls += 1
            code, token = self._hcalls.send_logical_lan(ua, (descriptor,), token, frame.gso_size)
        if code == _SUCCESS:
            self.sent += 1
            return True
        if code == _DROPPED:
            return self.drop("receiver")
        return self.drop("hypervisor" if code in (_HARDWARE, _BUSY) else "refused")

    def _send_parts(self, frame: Frame) -> bool:
        """Finish or segment what the hypervisor does not take."""
        if len(frame.data) > lan.MAX_FRAME:
            return self.drop("too long")
        if frame.partial is None:
            return self.drop("malformed")
        # what the headers do not bear out (a tunnel, say) is finished here; so are UDP and its segments
        parts = fitted(frame, 0)
        good = bool(parts)
        if not parts:
            self.drop("malformed")
        for part in parts:
            good = self.send(part) and good
        return good

    # -- the address, groups, the trunk

    def set_mac(self, mac: bytes) -> None:
        """The address is another. Raises `HcallError` for one that the hypervisor does not allow."""
        code = self._hcalls.change_logical_lan_mac(self.node.unit_address, int.from_bytes(mac, "big"))
        if code:
            raise HcallError(Hcall.H_CHANGE_LOGICAL_LAN_MAC, code)
        self.mac = mac

    def set_all_groups(self, wanted: bool) -> None:
        """Whether to get all multicast frames, as at first. Raises `HcallError`."""
        flags = lan.MULTICAST_SET_RECEPTION | lan.MULTICAST_SET_FILTER | lan.MULTICAST_CLEAR
        self._multicast(flags | (lan.MULTICAST_RECEPTION if wanted else 0))

    def set_groups(self, groups: Iterable[bytes]) -> None:
        """Get the frames of these multicast addresses; of all when they are too many. Raises `HcallError`."""
        self.set_all_groups(False)
        for group in groups:
            code = self._multicast(lan.MULTICAST_ADD, int.from_bytes(group, "big"))
            if code == _CONSTRAINED:
                self.set_all_groups(True)
                return
        both = lan.MULTICAST_SET_RECEPTION | lan.MULTICAST_SET_FILTER
        self._multicast(both | lan.MULTICAST_RECEPTION | lan.MULTICAST_FILTER)

    def _multicast(self, flags: int, mac: int = 0) -> int:
        code, _ = self._hcalls.multicast_ctrl(self.node.unit_address, flags, mac)
        if code not in (_SUCCESS, _CONSTRAINED):
            raise HcallError(Hcall.H_MULTICAST_CTRL, code)
        return code

    @property
    def active(self) -> bool:
        """Whether it is the active trunk adapter of its VLANs, as was heard last."""
        return bool(self.attributes & Attribute.ACTIVE_TRUNK)

    def activate(self) -> None:
        """Become the active trunk adapter of all its VLANs; whoever was it is not any more. Raises `HcallError`."""
        code, attributes = self._hcalls.illan_attributes(self.node.unit_address, 0, Attribute.ACTIVE_TRUNK)
        if code:
            raise HcallError(Hcall.H_ILLAN_ATTRIBUTES, code)
        self._note(attributes)

    def look(self) -> None:
        """Look at the attributes: `active` is true then. In memory, where the hypervisor shows them there."""
        if self._shown_at:
            self._note(int.from_bytes(self._hcalls.memory[self._shown_at : self._shown_at + 8], "big"))
            return
        code, attributes = self._hcalls.illan_attributes(self.node.unit_address, 0, 0)
        if code == _SUCCESS:
            self._note(attributes)

    def _note(self, attributes: int) -> None:
        was = self.active
        self.attributes = attributes
        if self.active != was and self.on_active is not None:
            self.on_active(self.active)

    def scan(self) -> list[tuple[int, bytes]]:
        """VLAN and address of every adapter in the VLANs of an active trunk (ILLAN_MAC_SCAN). Raises `HcallError`."""
        memory = self._space.allocate(PAGE_SIZE)
        found: list[tuple[int, bytes]] = []
        first = second = 0
        try:
            where = output_descriptor(PAGE_SIZE, memory.ioba)
            while True:
                code = self._hcalls.vioctl(self.node.unit_address, Vioctl.ILLAN_MAC_SCAN, where, first, second)[0]
                if code not in (_SUCCESS, _IN_PROGRESS):
                    raise HcallError(Hcall.H_VIOCTL, code)
                answer = bytes(memory.view)
                first, second, _, count = _SCAN.unpack_from(answer)
                for at in range(_SCAN.size, min(_SCAN.size + 8 * count, PAGE_SIZE), 8):
                    found.append((int.from_bytes(answer[at : at + 2], "big") & 0xFFF, answer[at + 2 : at + 8]))
                if code == _SUCCESS:
                    return found
        finally:
            self._space.release(memory)
