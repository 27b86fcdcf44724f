"""The reference model of partitions, windows, queues and remote DMA: plain Python, one dictionary lookup at a time.

It knows nothing of `powervio.phyp`. Tests run the same calls on both and compare return codes and whole memories.
Sizes and addresses are bytes. Source: papr-vio 1.4, 1.5, 2, 3.3, 4, 13.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 4096
READ, WRITE = 1, 2

SUCCESS, CLOSED, PARAMETER, NOT_FOUND, PERMISSION = 0, 2, -4, -7, -11
DROPPED, SOURCE_PARM, DEST_PARM, RESOURCE = -12, -13, -14, -16

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
        self.queue = None
        self.enabled = False
        return was


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
        pane = self.pane(liobn)
        if pane is None or pane.remote or ioba >= pane.size or ioba // PAGE + len(tces) > pane.size // PAGE:
            return PARAMETER
        if not all(self._entry_good(tce) for tce in tces):
            return PARAMETER
        assert pane.end is not None
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
        return SUCCESS if end.partner.queue is not None else CLOSED

    def free_crq(self, unit_address: int) -> int:
        end = self.by_address(unit_address)
        if end is None:
            return PARAMETER
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

    # what happens to the partition

    def reboot(self) -> None:
        announce = [end for end in self.ends if end.free()]
        for end in announce:
            assert end.partner is not None
            end.partner.deliver(DEREGISTERED)
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
