"""The reference model of partitions, windows, queues and remote DMA: plain Python, one dictionary lookup at a time.

It knows nothing of `powervio.phyp`. Tests run the same calls on both and compare return codes and whole memories.
Sizes and addresses are bytes. Source: papr-vio 1.4, 1.5, 2, 3.3, 4, 13.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 4096
READ, WRITE = 1, 2

SUCCESS, CLOSED, PARTIAL, PARAMETER, NOT_FOUND, PERMISSION = 0, 2, 5, -4, -7, -11
REMOTE_PARM, LONG_BUSY = -15, 9900
DROPPED, SOURCE_PARM, DEST_PARM, RESOURCE = -12, -13, -14, -16

FAILED = 0xFF01 << 48
DEREGISTERED = 0xFF02 << 48
SUSPENDED = 0xFF06 << 48
OVERLAID = 0x20 << 32


@dataclass
class ModelEnd:
    """One virtual adapter."""

    owner: ModelPartition
    unit_address: int
    liobn: int
    size: int
    remote_liobn: int | None = None
    remote_size: int = 0
    partner: ModelEnd | None = None
    tces: dict[int, int] = field(default_factory=dict)
    queue: tuple[int, int] | None = None
    """I/O address and length while registered."""
    enqueue: int = 0
    enabled: bool = False
    bit_bucket: bool = True
    copies: list[ModelCopy] = field(default_factory=list)
    """Redirected copies of this client's entries that are live or pinned."""
    closing: bool = False
    """On the server's end: H_FREE_CRQ was asked for, so no page is redirected any more."""

    def client(self) -> ModelEnd | None:
        """The end whose window is the link's."""
        return self if self.remote_liobn is None else self.partner

    def server(self) -> ModelEnd | None:
        return self.partner if self.remote_liobn is None else self

    def drain(self) -> int:
        client, server = self.client(), self.server()
        if client is None:
            return SUCCESS
        code = SUCCESS
        if any(copy.live for copy in client.copies) and not client.bit_bucket:
            return RESOURCE
        client.end_copies(range(1 << 60))
        if any(copy.pins for copy in client.copies):
            code = LONG_BUSY
        if server is not None and server.linked:
            server.closing = True
        return code

    def end_copies(self, entries: range) -> None:
        for copy in list(self.copies):
            if copy.entry in entries:
                copy.end()

    def translate(self, ioba: int, need: int) -> int | None:
        entry = self.tces.get(ioba // PAGE, 0)
        return None if entry & need != need else entry // PAGE * PAGE + ioba % PAGE

    def allows(self, ioba: int, length: int, need: int) -> bool:
        """Byte by byte in principle; a page has one answer for all of its bytes."""
        if length == 0:
            return True
        return all(
            self.translate(page * PAGE, need) is not None
            for page in range(ioba // PAGE, (ioba + length - 1) // PAGE + 1)
        )

    @property
    def linked(self) -> bool:
        return self.queue is not None and self.partner is not None and self.partner.queue is not None

    def _slot(self, offset: int) -> int | None:
        assert self.queue is not None
        return self.translate(self.queue[0] + offset, READ | WRITE)

    def put(self, high: int, low: int) -> int:
        if self.queue is None:
            return CLOSED
        address = self._slot(self.enqueue)
        if address is None:
            return CLOSED
        memory = self.owner.memory
        if memory[address]:
            return DROPPED
        memory[address : address + 16] = high.to_bytes(8, "big") + low.to_bytes(8, "big")
        self.enqueue = (self.enqueue + 16) % self.queue[1]
        return SUCCESS

    def deliver(self, event: int) -> None:
        if self.queue is None or self.put(event, 0) != DROPPED:
            return
        address = self._slot((self.enqueue - 16) % self.queue[1])
        if address is None:
            return
        if self.owner.memory[address] == 0:
            self.put(event, 0)
        else:
            self.owner.memory[address : address + 8] = (event | OVERLAID).to_bytes(8, "big")

    def free(self) -> bool:
        was = self.queue is not None
        client = self.client()
        if client is not None and self.linked:
            client.end_copies(range(1 << 60))
        self.queue = None
        self.enabled = False
        return was


@dataclass(eq=False)
class ModelCopy:
    """One entry of a client's table in one place of a physical adapter's."""

    client: ModelEnd
    entry: int
    tce: int
    adapter: ModelAdapter
    place: int
    live: bool = True
    pins: int = 0

    def end(self) -> None:
        if self.live:
            self.live = False
            del self.adapter.places[self.place]
        self.forget()

    def forget(self) -> None:
        if not self.live and not self.pins and self in self.client.copies:
            self.client.copies.remove(self)


@dataclass(eq=False)
class ModelAdapter:
    """A physical adapter: its owner's entries, and over them the copies."""

    owner: ModelPartition
    liobn: int
    pages: int
    own: dict[int, int] = field(default_factory=dict)
    places: dict[int, ModelCopy] = field(default_factory=dict)
    alive: bool = True

    def store(self, place: int, tce: int) -> None:
        if place in self.places:
            self.places[place].end()
        self.own[place] = tce

    def begin(self, segments: list[tuple[int, int]], need: int) -> ModelOperation | None:
        """What the segments name, pinned; None when a page of it is not mapped for that."""
        operation = ModelOperation()
        for ioba, length in segments:
            if not self.alive or ioba + length > self.pages * PAGE:
                return None
            while length:
                part = min(length, PAGE - ioba % PAGE)
                copy = self.places.get(ioba // PAGE)
                entry = copy.tce if copy else self.own.get(ioba // PAGE, 0)
                if entry & need != need:
                    return None
                owner = copy.client.owner if copy else self.owner
                operation.parts.append((owner, entry // PAGE * PAGE + ioba % PAGE, part))
                if copy:
                    operation.copies.append(copy)
                ioba += part
                length -= part
        for copy in operation.copies:
            copy.pins += 1
        for partition in operation.partitions():
            partition.pins += 1
        return operation


class ModelOperation:
    """What an engine is at work on."""

    def __init__(self) -> None:
        self.parts: list[tuple[ModelPartition, int, int]] = []
        """Whose memory, logical address, bytes."""
        self.copies: list[ModelCopy] = []

    def partitions(self) -> set[ModelPartition]:
        return {owner for owner, _, _ in self.parts}

    @property
    def data(self) -> bytes:
        return b"".join(bytes(owner.memory[at : at + length]) for owner, at, length in self.parts)

    def fill(self, data: bytes) -> None:
        for owner, at, length in self.parts:
            owner.memory[at : at + length] = data[:length]
            data = data[length:]

    def end(self) -> None:
        for copy in self.copies:
            copy.pins -= 1
            copy.forget()
        for partition in self.partitions():
            partition.pins -= 1


@dataclass
class Pane:
    """What a LIOBN means to the partition that names it."""

    size: int
    end: ModelEnd | None
    """Whose window it is; None for a remote pane that is not linked."""
    remote: bool


class ModelPartition:
    """Memory and adapters."""

    def __init__(self, pages: int) -> None:
        self.memory = bytearray(pages * PAGE)
        self.ends: list[ModelEnd] = []
        self.adapter: ModelAdapter | None = None
        self.pins = 0

    def physical(self, liobn: int) -> ModelAdapter | None:
        return self.adapter if self.adapter is not None and self.adapter.liobn == liobn else None

    def by_address(self, unit_address: int) -> ModelEnd | None:
        return next((end for end in self.ends if end.unit_address == unit_address), None)

    def pane(self, liobn: int) -> Pane | None:
        for end in self.ends:
            if end.liobn == liobn:
                return Pane(end.size, end, False)
            if end.remote_liobn == liobn:
                return Pane(end.remote_size, end.partner if end.linked else None, True)
        return None

    def _entry_good(self, tce: int) -> bool:
        return tce & 3 == 0 or tce // PAGE < len(self.memory) // PAGE

    def window_pages(self, write: bool) -> set[int]:
        """Logical pages that some window lets others touch now."""
        need = WRITE if write else READ
        return {entry // PAGE for end in self.ends for entry in end.tces.values() if entry & need}

    # hcall-tce, hcall-multi-tce

    def get_tce(self, liobn: int, ioba: int) -> tuple[int, int]:
        adapter = self.physical(liobn)
        if adapter is not None and ioba < adapter.pages * PAGE:
            copy = adapter.places.get(ioba // PAGE)
            if copy is not None:
                return PARTIAL, copy.tce | 0xFFFF_FFFF_FFFF_F000
            return SUCCESS, adapter.own.get(ioba // PAGE, 0)
        pane = self.pane(liobn)
        if pane is None or pane.remote or ioba >= pane.size:
            return PARAMETER, 0
        assert pane.end is not None
        return SUCCESS, pane.end.tces.get(ioba // PAGE, 0)

    def stuff_tce(self, liobn: int, ioba: int, tce: int, count: int) -> int:
        """The page is checked once, also when no entry is to be stored (papr-vio 1.4)."""
        code = self.put_tces(liobn, ioba, [])
        if code or not self._entry_good(tce):
            return code or PARAMETER
        return self.put_tces(liobn, ioba, [tce] * count)

    def put_tces(self, liobn: int, ioba: int, tces: list[int]) -> int:
        """H_PUT_TCE and H_PUT_TCE_INDIRECT: these entries in a row, or none of them."""
        adapter = self.physical(liobn)
        if adapter is not None:
            if ioba // PAGE >= adapter.pages or ioba // PAGE + len(tces) > adapter.pages:
                return PARAMETER
            if not all(self._entry_good(tce) for tce in tces):
                return PARAMETER
            for index, tce in enumerate(tces):
                adapter.store(ioba // PAGE + index, tce)
            return SUCCESS
        pane = self.pane(liobn)
        if pane is None or pane.remote or ioba >= pane.size or ioba // PAGE + len(tces) > pane.size // PAGE:
            return PARAMETER
        if not all(self._entry_good(tce) for tce in tces):
            return PARAMETER
        assert pane.end is not None
        entries = range(ioba // PAGE, ioba // PAGE + len(tces))
        affected = [copy for copy in pane.end.copies if copy.entry in entries]
        if affected and not pane.end.bit_bucket:
            return RESOURCE
        pane.end.end_copies(entries)
        if any(copy.pins for copy in affected):
            return RESOURCE  # nobody waits here (drain_limit)
        for index, tce in enumerate(tces):
            pane.end.tces[ioba // PAGE + index] = tce
        return SUCCESS

    # hcall-crq

    def reg_crq(self, unit_address: int, ioba: int, length: int) -> int:
        end = self.by_address(unit_address)
        if end is None or ioba % PAGE or length % PAGE or length == 0:
            return PARAMETER
        if ioba + length > end.size or not end.allows(ioba, length, READ | WRITE):
            return PARAMETER
        assert end.partner is not None
        if end.queue is not None:
            return RESOURCE
        end.queue, end.enqueue, end.enabled = (ioba, length), 0, True
        server = end.server()
        if server is not None and server.linked:
            server.closing = False
        return SUCCESS if end.partner.queue is not None else CLOSED

    def free_crq(self, unit_address: int) -> int:
        end = self.by_address(unit_address)
        if end is None:
            return PARAMETER
        if end.queue is not None:
            code = end.drain()
            if code:
                return code
        if end.free() and end.partner is not None:
            end.partner.deliver(DEREGISTERED)
        return SUCCESS

    def send_crq(self, unit_address: int, high: int, low: int) -> int:
        end = self.by_address(unit_address)
        if end is None or high >> 56 < 0x80 or high >> 56 == 0xFF:
            return PARAMETER
        if end.partner is None or not end.enabled or not end.partner.enabled:
            return CLOSED
        return end.partner.put(high, low)

    def enable_crq(self, unit_address: int) -> int:
        end = self.by_address(unit_address)
        if end is None:
            return PARAMETER
        end.enabled = end.queue is not None
        return SUCCESS

    # hcall-rdma

    def copy_rdma(self, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        source, target = self.pane(s_liobn), self.pane(d_liobn)
        if source is None:
            return SOURCE_PARM
        if target is None:
            return DEST_PARM
        if s_ioba + length > source.size:
            return SOURCE_PARM
        if d_ioba + length > target.size:
            return DEST_PARM
        code, data = _read(source, s_ioba, length)
        if code or not length:
            return code
        if target.end is None or not target.end.allows(d_ioba, length, WRITE):
            return PERMISSION
        if _overlap(source, s_ioba, target, d_ioba, length):
            # not described by PAPR: the hypervisor copies forward, in parts that cross no page of either side
            position = 0
            while position < length:
                part = min(PAGE - (s_ioba + position) % PAGE, PAGE - (d_ioba + position) % PAGE, length - position)
                _, data = _read(source, s_ioba + position, part)
                _write(target, d_ioba + position, data)
                position += part
            return SUCCESS
        _write(target, d_ioba, data)
        return SUCCESS

    def read_rdma(self, liobn: int, ioba: int, length: int) -> tuple[int, bytes]:
        pane = self.pane(liobn)
        if length > 72:
            return PARAMETER, b""
        if pane is None or not pane.remote or ioba + length > pane.size:
            return SOURCE_PARM, b""
        return _read(pane, ioba, length)

    def write_rdma(self, liobn: int, ioba: int, data: bytes) -> int:
        pane = self.pane(liobn)
        if len(data) > 48:
            return PARAMETER
        if pane is None or not pane.remote or ioba + len(data) > pane.size:
            return DEST_PARM
        if not data:
            return SUCCESS
        if pane.end is None or not pane.end.allows(ioba, len(data), WRITE):
            return PERMISSION
        _write(pane, ioba, data)
        return SUCCESS

    # redirected DMA

    def liobn_attributes(self, liobn: int, reset: int, wanted: int) -> tuple[int, int]:
        pane = self.pane(liobn)
        if self.physical(liobn) is not None:
            return (4 if reset | wanted else SUCCESS), 0
        if pane is None or pane.remote:
            return PARAMETER, 0
        assert pane.end is not None
        pane.end.bit_bucket = bool(int(pane.end.bit_bucket) & ~reset | wanted & 1)
        return (4 if (reset | wanted) & ~1 else SUCCESS), int(pane.end.bit_bucket)

    def put_rtce(self, r_liobn: int, r_iobas: list[int], liobn: int, ioba: int, limit: int) -> tuple[int, int]:
        """H_PUT_RTCE and H_PUT_RTCE_INDIRECT, after their checks of ranges."""
        pane, adapter = self.pane(r_liobn), self.physical(liobn)
        assert adapter is not None
        server = next(end for end in self.ends if end.remote_liobn == r_liobn)
        for index, r_ioba in enumerate(r_iobas):
            entry = 0 if pane is None or pane.end is None else pane.end.tces.get(r_ioba // PAGE, 0)
            if not entry & 3 or server.closing:
                return REMOTE_PARM, index
            assert pane is not None
            assert pane.end is not None
            if sum(copy.live and copy.entry == r_ioba // PAGE for copy in pane.end.copies) >= limit:
                return RESOURCE, index
            place = ioba // PAGE + index
            adapter.store(place, 0)
            copy = ModelCopy(pane.end, r_ioba // PAGE, entry, adapter, place)
            adapter.places[place] = copy
            pane.end.copies.append(copy)
        return SUCCESS, 0

    def remove_rtce(self, liobn: int, ioba: int, count: int, tce: int) -> None:
        adapter = self.physical(liobn)
        assert adapter is not None
        for place in range(ioba // PAGE, ioba // PAGE + count):
            adapter.store(place, tce & ~3)

    # what happens to the partition

    def terminate(self) -> None:
        for end in self.ends:
            end.free()
        for end in self.ends:
            assert end.partner is not None
            end.partner.deliver(FAILED)
        self.stop_adapter()
        if self.adapter is not None:
            self.adapter.alive = False
        self.adapter = None
        self.ends = []

    def stop_adapter(self) -> None:
        if self.adapter is not None:
            for copy in list(self.adapter.places.values()):
                copy.end()
            self.adapter.own.clear()

    def reboot(self) -> None:
        announce = [end for end in self.ends if end.free()]
        for end in announce:
            assert end.partner is not None
            end.partner.deliver(DEREGISTERED)
        if self.pins:
            return  # with its queues gone and nothing cleared, until it is tried again
        self.stop_adapter()
        for end in self.ends:
            end.tces.clear()
        self.memory[:] = bytes(len(self.memory))

    def suspend(self) -> None:
        for end in self.ends:
            if end.queue is not None:
                end.enabled = False
                end.deliver(SUSPENDED)
                assert end.partner is not None
                if end.partner.owner is not self:
                    end.partner.deliver(SUSPENDED)


def _addresses(pane: Pane, ioba: int, length: int, need: int) -> list[tuple[int, int]]:
    """`(logical address, bytes)` of a range, page by page; the range is allowed."""
    parts = []
    assert pane.end is not None
    while length:
        part = min(length, PAGE - ioba % PAGE)
        address = pane.end.translate(ioba, need)
        assert address is not None
        parts.append((address, part))
        ioba += part
        length -= part
    return parts


def _read(pane: Pane, ioba: int, length: int) -> tuple[int, bytes]:
    if not length:
        return SUCCESS, b""
    if pane.end is None or not pane.end.allows(ioba, length, READ):
        return PERMISSION, b""
    memory = pane.end.owner.memory
    return SUCCESS, b"".join(bytes(memory[a : a + n]) for a, n in _addresses(pane, ioba, length, READ))


def _write(pane: Pane, ioba: int, data: bytes) -> None:
    assert pane.end is not None
    for address, part in _addresses(pane, ioba, len(data), WRITE):
        pane.end.owner.memory[address : address + part] = data[:part]
        data = data[part:]


def _overlap(source: Pane, s_ioba: int, target: Pane, d_ioba: int, length: int) -> bool:
    assert source.end is not None
    assert target.end is not None
    if source.end.owner is not target.end.owner:
        return False
    pages = {address // PAGE for address, _ in _addresses(source, s_ioba, length, READ)}
    return any(address // PAGE in pages for address, _ in _addresses(target, d_ioba, length, WRITE))
