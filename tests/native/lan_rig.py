"""Partitions with logical LAN adapters on one switch, for tests that make hcalls themselves, and frames."""

from __future__ import annotations

from types import TracebackType

from powervio.native.lan import LanAdapter, create_lan
from powervio.native.lan_client import BufferPool, LanPort
from powervio.network.frame import GSO_TCPV4, GSO_TCPV6, Frame, Offload
from powervio.network.switch import PortOptions, Switch
from powervio.papr import lan
from powervio.papr.port import HcallPort
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.vio.kernel import PartitionKernel

PAGE = 4096
SUCCESS, BUSY, CONSTRAINED, IN_PROGRESS = 0, 1, 4, 14
PARAMETER, NOT_FOUND, PERMISSION, DROPPED, RESOURCE = -4, -7, -11, -12, -16
LIST, FILTERS, QUEUE, SEND, RECEIVE = 0, PAGE, 2 * PAGE, 4 * PAGE, 40 * PAGE
"""Where a `End` has its pages: I/O addresses, and logical addresses too."""
ENTRIES = 16
PAGES = 128
ALL = b"\xff" * 6
EVERYTHING = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN | Offload.USO4 | Offload.USO6


def mac(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number])


def ethernet(to: bytes, source: bytes, payload: bytes = b"", kind: int = 0x88B5, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    return to + source + tag + kind.to_bytes(2, "big") + payload


def _sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp(
    to: bytes,
    source: bytes,
    payload: int,
    *,
    version: int = 4,
    vlan: int | None = None,
    flags: int = 0x18,
    field: str = "partial",
) -> bytes:
    """A TCP segment in a frame; its checksum's `field` is "partial", "full" or "zero"."""
    data = bytes(at % 251 for at in range(payload))
    segment = bytearray(20) + data
    segment[0:4] = b"\x03\xe8\0\x50"
    segment[4:8] = b"\0\0\1\0"
    segment[12], segment[13] = 5 << 4, flags
    if version == 4:
        head = bytearray(b"\x45\0") + (20 + len(segment)).to_bytes(2, "big") + b"\0\x07\x40\0\x40\6\0\0"
        head += b"\x0a\0\0\1\x0a\0\0\2"
        head[10:12] = (~_sum(bytes(head)) & 0xFFFF).to_bytes(2, "big")
        addresses, kind = bytes(head[12:20]), 0x0800
    else:
        addresses = b"\xfd" + bytes(14) + b"\1\xfd" + bytes(14) + b"\2"
        head = bytearray(b"\x60\0\0\0") + len(segment).to_bytes(2, "big") + b"\6\x40" + addresses
        kind = 0x86DD
    partial = _sum(addresses + b"\0\6" + len(segment).to_bytes(4, "big"))
    if field == "partial":
        segment[16:18] = partial.to_bytes(2, "big")
    elif field == "full":
        total = _sum(partial.to_bytes(2, "big") + bytes(segment))
        segment[16:18] = (~total & 0xFFFF or 0xFFFF).to_bytes(2, "big")
    return ethernet(to, source, bytes(head) + bytes(segment), kind, vlan)


def large(to: bytes, source: bytes, payload: int, mss: int, *, version: int = 4, flags: int = 0x18) -> Frame:
    """A frame of TCP that is to be segmented."""
    data = tcp(to, source, payload, version=version, flags=flags)
    headers = len(data) - payload
    gso = (GSO_TCPV4 if version == 4 else GSO_TCPV6) | (0x80 if flags & 0x80 else 0)
    return Frame(data, (headers - 20, 16), gso=gso, gso_size=mss, header_bytes=headers)


def same(one: Frame | None, other: Frame | None) -> bool:
    """Whether two frames are equal, wherever their bytes are."""
    if one is None or other is None:
        return one is other
    return bytes(one.data) == bytes(other.data) and (
        one.partial, one.valid, one.gso, one.gso_size, one.header_bytes
    ) == (other.partial, other.valid, other.gso, other.gso_size, other.header_bytes)  # fmt: skip


class Entry:
    """One of the receive queue, with the message that it names."""

    def __init__(self, end: End, raw: bytes) -> None:
        self.control = raw[0]
        self.offset = int.from_bytes(raw[2:4], "big")
        self.length = int.from_bytes(raw[4:8], "big")
        self.handle = int.from_bytes(raw[8:16], "big")
        self.flags = raw[0] & 7
        self.has_message = raw[0] & lan.ENTRY_MESSAGE != 0
        at = self.handle & 0xFFFF_FFFF
        self.message = bytes(end.memory[at + self.offset : at + self.offset + self.length])
        self.mss = int.from_bytes(end.memory[at + 8 : at + 16], "big") if self.offset == 16 else None


class End:
    """An adapter, and a partition that makes hcalls for it. All of its pages are mapped, one to one."""

    def __init__(self, rig: Rig, partition: Partition, adapter: LanAdapter) -> None:
        self.adapter = adapter
        self.partition = partition
        self.port: HcallPort = partition.port
        self.memory = partition.memory
        self.ua = adapter.unit_address
        self.mac = adapter.mac
        self.liobn = adapter.node.windows[0].liobn
        self.next = 0
        self.entries = ENTRIES
        for page in range(PAGES):
            assert self.port.put_tce(self.liobn, page * PAGE, page * PAGE | 3) == 0

    def register(self, attributes: int = 0, *, entries: int = ENTRIES, mac: bytes | None = None) -> None:
        if attributes:
            code, found = self.port.illan_attributes(self.ua, 0, attributes)
            assert code == SUCCESS
            assert found & attributes == attributes
        self.memory[QUEUE : QUEUE + 16 * entries] = bytes(16 * entries)
        self.entries, self.next = entries, 0
        assert self.try_register(entries=entries, mac=mac) == SUCCESS

    def try_register(self, *, entries: int = ENTRIES, mac: bytes | None = None) -> int:
        number = int.from_bytes(mac or self.mac, "big")
        return self.port.register_logical_lan(self.ua, LIST, lan.descriptor(16 * entries, QUEUE), FILTERS, number)

    def add(self, at: int, size: int = 2048) -> int:
        """A buffer whose handle is its address with 7 in front."""
        self.memory[at : at + 8] = (7 << 32 | at).to_bytes(8, "big")
        return self.port.add_logical_lan_buffer(self.ua, lan.descriptor(size, at))

    def add_many(self, count: int, size: int = 2048, at: int = RECEIVE) -> None:
        for number in range(count):
            assert self.add(at + number * size, size) == SUCCESS

    def send(self, data: bytes, flags: int = 0, mss: int = 0, token: int = 0) -> int:
        return self.send_with_token(data, flags, mss, token)[0]

    def send_with_token(self, data: bytes, flags: int = 0, mss: int = 0, token: int = 0) -> tuple[int, int]:
        self.memory[SEND : SEND + len(data)] = data
        return self.port.send_logical_lan(self.ua, (lan.descriptor(len(data), SEND, lan.VALID | flags),), token, mss)

    def entry(self) -> Entry | None:
        """The next entry of the receive queue."""
        at = QUEUE + 16 * (self.next % self.entries)
        raw = bytes(self.memory[at : at + 16])
        valid = 0x80 if self.next // self.entries % 2 == 0 else 0
        if raw[0] & 0x80 != valid or not raw[8:16].strip(b"\0"):
            return None
        self.next += 1
        return Entry(self, raw)

    def message(self) -> bytes | None:
        entry = self.entry()
        return None if entry is None else entry.message

    @property
    def drops(self) -> int:
        return int.from_bytes(self.memory[LIST + lan.DROP_COUNTER : LIST + lan.DROP_COUNTER + 8], "big")

    @property
    def toggle(self) -> bool:
        return self.memory[LIST] & lan.TOGGLE != 0

    def interrupted(self) -> bool:
        """Whether there was an interrupt; it is ended."""
        xirr = self.port.xirr()
        if xirr & 0xFF_FFFF:
            self.port.eoi(xirr)
        return xirr & 0xFF_FFFF == self.adapter.interrupt


class Rig:
    """A hypervisor, a switch, and partitions by number."""

    def __init__(self, **options: int) -> None:
        self.hypervisor = Hypervisor(**options)  # type: ignore[arg-type]
        self.switch = Switch(seed=1)
        self.kernels: list[PartitionKernel] = []
        self._count = 0

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for kernel in self.kernels:
            kernel.close()
        self.hypervisor.close()
        self.switch.close()

    def adapter(
        self,
        *,
        pvid: int = 1,
        vlans: tuple[int, ...] = (),
        trunk: int = 0,
        memory: int = PAGES * PAGE,
        standby: bool = False,
        spoof_check: bool = True,
        own_macs: bool = True,
        filters: int = 4,
        window: int = PAGES * PAGE,
    ) -> LanAdapter:
        self._count += 1
        partition = self.hypervisor.create_partition(f"lpar{self._count}", memory)
        options = PortOptions(
            name=partition.name,
            pvid=pvid,
            vlans=vlans,
            trunk=trunk,
            mac=mac(self._count),
            standby=standby,
            spoof_check=spoof_check,
        )
        return create_lan(
            self.hypervisor, partition, self.switch, options, own_macs=own_macs, filters=filters, window=window
        )

    def beside(self, other: LanAdapter, *, pvid: int) -> LanAdapter:
        """Another adapter of the same partition."""
        self._count += 1
        options = PortOptions(name=f"{other.partition.name}.{pvid}", pvid=pvid, mac=mac(self._count))
        return create_lan(self.hypervisor, other.partition, self.switch, options, window=16 << 20)

    def end(self, *, pvid: int = 1, vlans: tuple[int, ...] = (), trunk: int = 0, **options: int) -> End:
        adapter = self.adapter(pvid=pvid, vlans=vlans, trunk=trunk, **options)  # type: ignore[arg-type]
        return End(self, adapter.partition, adapter)

    def client(
        self,
        *,
        pvid: int = 1,
        vlans: tuple[int, ...] = (),
        trunk: int = 0,
        standby: bool = False,
        pools: tuple[BufferPool, ...] | None = None,
        take: Offload = EVERYTHING,
    ) -> LanPort:
        adapter = self.adapter(pvid=pvid, vlans=vlans, trunk=trunk, standby=standby, memory=16 << 20, window=16 << 20)
        kernel = PartitionKernel(adapter.partition.port)
        self.kernels.append(kernel)
        port = LanPort(kernel, adapter.node) if pools is None else LanPort(kernel, adapter.node, pools=pools)
        port.start()
        port.take(take)
        return port

    def settle(self) -> None:
        for _ in range(100):
            worked = [kernel.poll() for kernel in self.kernels]
            if not any(worked):
                return
        raise AssertionError("it does not settle")
