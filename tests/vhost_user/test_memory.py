"""Guest memory: regions, translation of all three kinds of address, the IOTLB against a model, the dirty log."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from powervio.errors import RemoteError
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user.memory import GuestMemory, MappedFile
from powervio.transport.vhost_user.payload import GuestPayload
from powervio.transport.vhost_user.protocol import Region
from powervio.transport.vhost_user.translate import RegionMap, TranslationCache, mark

pytestmark = pytest.mark.dual

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def area() -> Iterator[MappedArea]:
    made = MappedArea.create("test", 64 * PAGE)
    for page in range(64):
        made.view[page * PAGE : (page + 1) * PAGE] = bytes([page]) * PAGE
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    yield made
    made.close()


def test_range_over_two_regions_is_two_pieces(memory: GuestMemory, area: MappedArea) -> None:
    regions = [Region(0x10000, 4 * PAGE, 0x500000, 0), Region(0x10000 + 4 * PAGE, 4 * PAGE, 0x900000, 8 * PAGE)]
    memory.set_table(regions, [area.fd, area.fd])
    pieces = memory.gather(0x10000 + 3 * PAGE + 8, 2 * PAGE)
    assert [bytes(piece[:1]) for piece in pieces] == [b"\3", b"\x08"]
    assert [len(piece) for piece in pieces] == [PAGE - 8, PAGE + 8]
    payload = GuestPayload(memory, [(0x10000 + 3 * PAGE + 8, 2 * PAGE)], 2)
    payload.write(PAGE - 10, b"abcd")
    assert payload.read(PAGE - 10, 4) == b"abcd"
    assert bytes(area.view[4 * PAGE - 2 : 4 * PAGE]) == b"ab"
    assert bytes(area.view[8 * PAGE : 8 * PAGE + 2]) == b"cd"


@pytest.mark.parametrize("address", [0, 0xFFFF, 0x10000 + 64 * PAGE, TOP - 1])
def test_address_outside_every_region_is_refused(memory: GuestMemory, area: MappedArea, address: int) -> None:
    memory.set_table([Region(0x10000, 64 * PAGE, 0x500000, 0)], [area.fd])
    with pytest.raises(RemoteError, match="no memory region"):
        memory.gather(address, 1)
    with pytest.raises(RemoteError):
        memory.gather(0x10000 + 64 * PAGE - 1, 2)


def test_range_at_the_top_of_the_address_space(memory: GuestMemory, area: MappedArea) -> None:
    memory.set_table([Region(TOP - PAGE, PAGE, 0, 5 * PAGE)], [area.fd])
    assert bytes(memory.gather(TOP - 1, 1)[0]) == b"\5"
    with pytest.raises(RemoteError, match=r"beyond 2\^64"):
        memory.gather(TOP - 1, 2)


@pytest.mark.parametrize(
    ("regions", "what"),
    [
        ([Region(0, 2 * PAGE, 0x100000, 0), Region(PAGE, PAGE, 0x200000, 0)], "overlap at 0x1000"),
        ([Region(0, 2 * PAGE, 0x100000, 0), Region(0x8000, PAGE, 0x101000, 0)], "overlap at 0x101000"),
        ([Region(TOP - PAGE, 2 * PAGE, 0, 0)], r"beyond 2\^64"),
        ([Region(0, PAGE, TOP - 1, 0)], r"beyond 2\^64"),
        ([Region(0, 65 * PAGE, 0, 0)], "of a file of 262144"),
        ([Region(0, PAGE, 0, 64 * PAGE)], "of a file of 262144"),
        ([Region(0, PAGE, 0, TOP - PAGE)], "of a file of 262144"),
        ([Region(0, 0, 0, 0)], "0 bytes at 0"),
    ],
)
def test_regions_that_cannot_be_are_refused_and_the_old_ones_stay(
    memory: GuestMemory, area: MappedArea, regions: list[Region], what: str
) -> None:
    old = [Region(0x10000, PAGE, 0x500000, 7 * PAGE)]
    memory.set_table(old, [area.fd])
    with pytest.raises(RemoteError, match=what):
        memory.set_table(regions, [area.fd] * len(regions))
    assert memory.regions == old
    assert bytes(memory.gather(0x10000, 1)[0]) == b"\7"


def test_what_is_no_file_is_no_memory(memory: GuestMemory) -> None:
    for fd in (os.eventfd(0), os.open("/dev/zero", os.O_RDWR), os.open("/tmp", os.O_RDONLY)):
        with pytest.raises(RemoteError, match="no file"):
            memory.add(Region(0, PAGE, 0, 0), fd)
        os.close(fd)
    read_only = os.open("/etc/passwd", os.O_RDONLY)
    with pytest.raises(RemoteError, match="cannot be mapped"):
        memory.add(Region(0, 16, 0, 0), read_only)
    os.close(read_only)


def test_slots_come_and_go(memory: GuestMemory, area: MappedArea) -> None:
    first, second = Region(0, PAGE, 0x100000, 0), Region(0x10000, PAGE, 0x200000, PAGE)
    memory.add(first, area.fd)
    memory.add(second, area.fd)
    with pytest.raises(RemoteError, match="overlap"):
        memory.add(Region(0x10000, PAGE, 0x300000, 0), area.fd)
    view = memory.gather(0, 8)[0]
    memory.remove(first)
    assert bytes(view) == bytes(8)  # whoever still had it
    with pytest.raises(RemoteError, match="no memory region"):
        memory.gather(0, 1)
    with pytest.raises(RemoteError, match="there is no memory region"):
        memory.remove(first)
    assert bytes(memory.gather(0x10000, 1)[0]) == b"\1"


def test_region_in_the_middle_of_a_page_of_its_file(memory: GuestMemory, area: MappedArea) -> None:
    memory.add(Region(0, 100, 0x100000, 3 * PAGE - 50), area.fd)
    assert bytes(memory.gather(0, 100)[0]) == b"\2" * 50 + b"\3" * 50


def test_ring_area_is_aligned_mapped_and_in_one_piece(memory: GuestMemory, area: MappedArea) -> None:
    memory.set_table([Region(0, 4 * PAGE, 0x100000, 0), Region(4 * PAGE, PAGE, 0x104000, 9 * PAGE)], [area.fd] * 2)
    assert memory.ring_area(0x101000, 16, 16, "descriptor table", 3)[0] == 1
    for address, what in ((0x101008, "not aligned to 16"), (0x200000, "no memory region"), (0x103FF0, "no memory")):
        with pytest.raises(RemoteError, match=what):
            memory.ring_area(address, 32, 16, "descriptor table", 3)


def test_iotlb_translates_asks_and_refuses(memory: GuestMemory, area: MappedArea) -> None:
    memory.set_table([Region(0x40000, 64 * PAGE, 0x100000, 0)], [area.fd])
    cache = memory.iotlb = TranslationCache()
    asked: list[tuple[int, int]] = []

    def miss(iova: int, access: int) -> None:
        asked.append((iova, access))
        if iova < 0x9000_0000:
            page = iova & ~0xFFF
            cache.update(page, PAGE, 0x100000 + ((page >> 12) % 64) * PAGE, 1)

    memory.miss = miss
    cache.update(0x8000_0000, PAGE, 0x105000, 3)
    pieces = memory.gather(0x8000_0FF0, 32)
    assert [piece[0] for piece in pieces] == [5, 0x80001 % 64]
    assert asked == [(0x8000_1000, 1)]
    with pytest.raises(RemoteError, match="not mapped for access 2"):
        memory.gather(0x8000_1000, 8, 2)
    with pytest.raises(RemoteError, match="not mapped"):
        memory.gather(0x9000_0000, 8)
    cache.update(0xA000_0000, PAGE, 0xDEAD_0000, 3)  # a user address that is nobody's
    with pytest.raises(RemoteError, match="user address"):
        memory.gather(0xA000_0000, 8)


def test_ring_behind_the_iotlb_may_be_in_many_entries_but_not_scattered(memory: GuestMemory, area: MappedArea) -> None:
    memory.set_table([Region(0x40000, 64 * PAGE, 0x100000, 0)], [area.fd])
    cache = memory.iotlb = TranslationCache()
    cache.update(0x1000, PAGE, 0x103000, 3)
    cache.update(0x2000, PAGE, 0x104000, 3)
    cache.update(0x3000, PAGE, 0x109000, 3)
    view = memory.ring_area(0x1000, 2 * PAGE, 16, "descriptor table", 3)
    assert (view[0], view[PAGE]) == (3, 4)
    with pytest.raises(RemoteError, match="scattered"):
        memory.ring_area(0x1000, 3 * PAGE, 16, "descriptor table", 3)


def test_log_has_a_bit_for_each_page_that_was_written(memory: GuestMemory, area: MappedArea) -> None:
    memory.set_table([Region(0x40000, 64 * PAGE, 0x100000, 0)], [area.fd])
    log = MappedArea.create("log", PAGE)
    memory.set_log(MappedFile(log.fd, 0, 64, "log"))
    payload = GuestPayload(memory, [(0x40000, 10), (0x43FFF, 2)], 2)
    payload.write(0, bytes(12))
    assert not any(log.view)
    memory.logging = True
    payload.write(0, bytes(2))
    assert log.view[0x40 >> 3] == 1
    payload.write(9, bytes(3))
    assert log.view[0x40 >> 3] == 0b11001
    assert log.view[0x44 >> 3] == log.view[8]
    with pytest.raises(RemoteError, match="has no bit"):
        memory.written_guest(64 * 8 * PAGE, 1)
    log.close()


@given(st.integers(0, 200 * PAGE), st.integers(0, 20 * PAGE))
def test_mark_sets_exactly_the_pages_of_a_range(address: int, length: int) -> None:
    log = bytearray(64)
    mark(memoryview(log), address, length)
    wanted = set(range(address >> 12, ((address + length - 1) >> 12) + 1)) if length else set()
    assert {page for page in range(512) if log[page >> 3] >> (page & 7) & 1} == wanted


@given(st.data())
def test_region_map_finds_what_a_plain_search_finds(data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=8))
    start, regions, model = 0, [], {}
    for number, (gap, size) in enumerate(gaps):
        start += gap
        content = bytearray(bytes([number]) * size)
        regions.append((start, 0x1000 + start * 2, size, memoryview(content)))
        model.update({start + offset: number for offset in range(size)})
        start += size
    found = RegionMap(regions)
    address, length = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 12))
    wanted = [model.get(address + offset) for offset in range(length)]
    if None in wanted:
        with pytest.raises(RemoteError):
            found.guest(address, length)
    else:
        assert list(b"".join(found.guest(address, length))) == wanted


class CacheMachine(RuleBasedStateMachine):
    """The IOTLB against a dictionary of bytes. Addresses are few, so that entries meet."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TranslationCache(limit=6)
        self.model: dict[int, tuple[int, int]] = {}
        self.entries: list[tuple[int, int]] = []

    @rule(iova=st.integers(0, 60), size=st.integers(1, 12), user=st.integers(0, 1000), access=st.integers(1, 3))
    def update(self, iova: int, size: int, user: int, access: int) -> None:
        self.cache.update(iova, size, user, access)
        self._forget(iova, size)
        if len(self.entries) == 6:
            self.entries, self.model = [], {}
        self.entries.append((iova, size))
        self.model.update({iova + offset: (user + offset, access) for offset in range(size)})

    @rule(iova=st.integers(0, 60), size=st.integers(1, 30))
    def invalidate(self, iova: int, size: int) -> None:
        self.cache.invalidate(iova, size)
        self._forget(iova, size)

    def _forget(self, iova: int, size: int) -> None:
        hit = [(start, length) for start, length in self.entries if start < iova + size and iova < start + length]
        for start, length in hit:
            self.entries.remove((start, length))
            for address in range(start, start + length):
                del self.model[address]

    @invariant()
    def same(self) -> None:
        assert len(self.cache) == len(self.entries)
        for address in range(80):
            for access in (1, 2, 3):
                user, room = self.cache.lookup(address, access)
                known = self.model.get(address)
                if known is None or known[1] & access != access:
                    assert room == 0
                else:
                    start, length = next(entry for entry in self.entries if entry[0] <= address < sum(entry))
                    assert (user, room) == (known[0], start + length - address)


TestCache = CacheMachine.TestCase


@pytest.mark.parametrize(
    ("iova", "size", "user", "access"),
    [(0, 0, 0, 3), (TOP - 1, 2, 0, 3), (0, 2, TOP - 1, 3), (0, 1, 0, 0), (0, 1, 0, 4), (0, TOP, 1, 3)],
)
def test_iotlb_entry_that_cannot_be_is_refused(iova: int, size: int, user: int, access: int) -> None:
    with pytest.raises(RemoteError):
        TranslationCache().update(iova, size, user, access)


def test_iotlb_entry_of_everything() -> None:
    cache = TranslationCache()
    cache.update(0, TOP - 1, 0, 3)
    assert cache.lookup(123, 3) == (123, TOP - 1 - 123)
    cache.invalidate(0, TOP - 1)
    assert cache.lookup(123, 3) == (0, 0)
