"""No byte outside a window is ever read or written: the hypervisor against a plain model, whole memories compared.

Three partitions of 8 pages: A serves B and C, and is at the same time B's client. Each page carries its own pattern, so
that a byte in the wrong place shows where it came from. After every call the return code and every byte of every
partition must be what the model says; and, without the model's copy logic, no page may have changed that was not mapped
for writing.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.policy import Policy

from .model import ModelEnd, ModelPartition

# Finding the shortest failing run takes hypothesis minutes; cut short it would not say what failed.
pytestmark = [pytest.mark.dual, pytest.mark.timeout(900)]

PAGE = 4096
PAGES = 8
SERVER_WINDOW = 6 * PAGE
CLIENT_WINDOW = 10 * PAGE
PAIRS = ((0, 1), (0, 2), (1, 0))

partitions = st.integers(0, 2)
ends = st.integers(0, 2 * len(PAIRS) - 1)
names = st.integers(0, 6)
"""Which LIOBN, as the caller sees them: its own first, then one of another partition and one that is nobody's."""
addresses = st.builds(
    lambda page, offset: page * PAGE + offset, st.integers(0, 10), st.sampled_from((0, 0, 1, 8, 4088, 4089, 4095))
)
"""Also the last 8 bytes of each page, and so of each window, and one byte further."""
inside = st.builds(lambda page, offset: page * PAGE + offset, st.integers(0, 5), st.sampled_from((0, 1, 8, 4088, 4089)))
lengths = st.sampled_from((0, 1, 8, 8, 16, 100, 4095, 4096, 4097, 2 * PAGE))
strange = st.sampled_from((0, 0, 0, 0, 0, 0x100))
"""Added to a unit address, most often nothing."""
entries = st.builds(
    lambda page, access: page * PAGE | access, st.integers(0, PAGES), st.sampled_from((0, 1, 2, 3, 3, 3))
)
headers = st.sampled_from((0x00, 0x7F, 0x80, 0x80, 0x80, 0x81, 0xC0, 0xFE, 0xFF))


def pattern(partition: int, page: int) -> bytes:
    return bytes((partition << 6 | page << 2 | index & 3) & 0xFF for index in range(16)) * (PAGE // 16)


class Isolation(RuleBasedStateMachine):
    """The same calls on both."""

    def __init__(self) -> None:
        super().__init__()
        self.hypervisor = Hypervisor(Policy(drain_limit=0.0))
        self.real: list[Partition] = []
        self.model: list[ModelPartition] = []
        for name in "abc":
            self.real.append(self.hypervisor.create_partition(name, PAGES * PAGE))
            self.model.append(ModelPartition(PAGES))
        self.ends: list[ModelEnd] = []
        for pair in range(len(PAIRS)):
            self.ends += self.make_pair(pair)
        for index in range(3):
            self.load(index)
        self.before_call()

    def make_pair(self, pair: int) -> list[ModelEnd]:
        server, client = PAIRS[pair]
        real_ends = self.hypervisor.create_pair(
            self.real[server], self.real[client], server_window=SERVER_WINDOW, client_window=CLIENT_WINDOW
        )
        models = []
        for owner, end in zip((server, client), real_ends, strict=True):
            windows = end.node.windows
            made = ModelEnd(self.model[owner], end.unit_address, windows[0].liobn, windows[0].size)
            if len(windows) > 1:
                made.remote_liobn, made.remote_size = windows[1].liobn, windows[1].size
            self.model[owner].ends.append(made)
            models.append(made)
        models[0].partner, models[1].partner = models[1], models[0]
        return models

    def liobn(self, index: int, name: int) -> int:
        own = [liobn for end in self.model[index].ends for liobn in (end.liobn, end.remote_liobn) if liobn is not None]
        foreign = self.model[(index + 1) % 3].ends[0].liobn
        choice = [*own, foreign, 0x666]
        return choice[name % len(choice)]

    @initialize(pages=st.permutations(range(PAGES)))
    def start(self, pages: list[int]) -> None:
        """Most calls lead nowhere before everything is connected; queues lie in pages that no other window has."""
        for pair in range(len(PAIRS)):
            self.connect(pair, [pages[pair], *pages[len(PAIRS) :], *pages[len(PAIRS) :]])

    def teardown(self) -> None:
        self.hypervisor.close()

    def load(self, index: int) -> None:
        """A partition fills its own memory with its pattern."""
        image = b"".join(pattern(index, page) for page in range(PAGES))
        self.real[index].memory[:] = image
        self.model[index].memory[:] = image

    def own_write(self, index: int, address: int, data: bytes) -> None:
        """A partition writes to its own memory, as it may at any time."""
        self.real[index].memory[address : address + len(data)] = data
        self.model[index].memory[address : address + len(data)] = data

    def before_call(self) -> None:
        self.writable = [model.window_pages(write=True) for model in self.model]
        self.contents = [bytes(real.memory) for real in self.real]

    @invariant()
    def nothing_else_changed(self) -> None:
        for real, model in zip(self.real, self.model, strict=True):
            assert bytes(real.memory) == model.memory  # memcmp; a memoryview compares item by item

    def only_windows_changed(self) -> None:
        for real, before, writable in zip(self.real, self.contents, self.writable, strict=True):
            after = bytes(real.memory)
            if after == before:
                continue
            for page in range(PAGES):
                place = slice(page * PAGE, (page + 1) * PAGE)
                assert page in writable or after[place] == before[place]

    # the windows

    @rule(index=partitions, name=names, ioba=addresses, tce=entries)
    def put_tce(self, index: int, name: int, ioba: int, tce: int) -> None:
        self.before_call()
        code = self.real[index].port.put_tce(self.liobn(index, name), ioba, tce)
        assert code == self.model[index].put_tces(self.liobn(index, name), ioba, [tce])
        self.only_windows_changed()

    @rule(end=ends, page=st.integers(0, 9), entry=entries)
    def map_own(self, end: int, page: int, entry: int) -> None:
        """The good case on purpose, which blind choice finds too seldom."""
        model = self.ends[end]
        index = self.model.index(model.owner)
        code = self.real[index].port.put_tce(model.liobn, page * PAGE, entry)
        assert code == self.model[index].put_tces(model.liobn, page * PAGE, [entry])

    @rule(index=partitions, name=names, ioba=addresses, tce=entries, count=st.integers(0, 11))
    def stuff_tce(self, index: int, name: int, ioba: int, tce: int, count: int) -> None:
        code = self.real[index].port.stuff_tce(self.liobn(index, name), ioba, tce, count)
        assert code == self.model[index].stuff_tce(self.liobn(index, name), ioba, tce, count)

    @rule(
        index=partitions,
        name=names,
        ioba=addresses,
        page=st.integers(0, PAGES - 1),
        tces=st.lists(entries, max_size=10),
    )
    def put_tce_indirect(self, index: int, name: int, ioba: int, page: int, tces: list[int]) -> None:
        self.own_write(index, page * PAGE, b"".join(tce.to_bytes(8, "big") for tce in tces))
        self.before_call()
        code = self.real[index].port.put_tce_indirect(self.liobn(index, name), ioba, page * PAGE, len(tces))
        assert code == self.model[index].put_tces(self.liobn(index, name), ioba, tces)
        self.only_windows_changed()

    @rule(index=partitions, name=names, ioba=addresses)
    def get_tce(self, index: int, name: int, ioba: int) -> None:
        code = self.real[index].port.get_tce(self.liobn(index, name), ioba)
        assert code == self.model[index].get_tce(self.liobn(index, name), ioba)

    # the queues

    def address(self, end: int, strange: int) -> tuple[int, int]:
        """The owner of an adapter, and a unit address that it calls with."""
        return self.model.index(self.ends[end].owner), self.ends[end].unit_address + strange

    @rule(
        end=ends,
        strange=strange,
        page=st.integers(0, 9),
        pages=st.integers(0, 2),
        offset=st.sampled_from((0, 0, 0, 16)),
    )
    def reg_crq(self, end: int, strange: int, page: int, pages: int, offset: int) -> None:
        (index, address), ioba, length = self.address(end, strange), page * PAGE + offset, pages * PAGE
        code = self.real[index].port.reg_crq(address, ioba, length)
        assert code == self.model[index].reg_crq(address, ioba, length)

    @rule(pair=st.integers(0, len(PAIRS) - 1), pages=st.lists(st.integers(0, PAGES - 1), min_size=10, max_size=10))
    def connect(self, pair: int, pages: list[int]) -> None:
        """Both ends map their windows somehow and register page 0, with its slots freed."""
        for end in self.ends[2 * pair : 2 * pair + 2]:
            index = self.model.index(end.owner)
            for number, page in enumerate(pages[: end.size // PAGE]):
                entry = page * PAGE | (3 if number != 4 else 1)
                code = self.real[index].port.put_tce(end.liobn, number * PAGE, entry)
                assert code == self.model[index].put_tces(end.liobn, number * PAGE, [entry])
            self.own_write(index, pages[0] * PAGE, bytes(PAGE))
            code = self.real[index].port.reg_crq(end.unit_address, 0, PAGE)
            assert code == self.model[index].reg_crq(end.unit_address, 0, PAGE)

    @rule(end=ends, strange=strange)
    def free_crq(self, end: int, strange: int) -> None:
        self.before_call()
        index, address = self.address(end, strange)
        assert self.real[index].port.free_crq(address) == self.model[index].free_crq(address)
        self.only_windows_changed()

    @rule(end=ends, strange=strange, header=headers, rest=st.integers(0, 2**56 - 1), low=st.integers(0, 2**64 - 1))
    def send_crq(self, end: int, strange: int, header: int, rest: int, low: int) -> None:
        self.before_call()
        (index, address), high = self.address(end, strange), header << 56 | rest
        assert self.real[index].port.send_crq(address, high, low) == self.model[index].send_crq(address, high, low)
        self.only_windows_changed()

    @rule(end=ends, count=st.sampled_from((100, 255, 256, 257)))
    def flood(self, end: int, count: int) -> None:
        self.before_call()
        index, address = self.model.index(self.ends[end].owner), self.ends[end].unit_address
        for low in range(count):
            code = self.real[index].port.send_crq(address, 0x80 << 56, low)
            assert code == self.model[index].send_crq(address, 0x80 << 56, low)
        self.only_windows_changed()

    @rule(end=ends, count=st.sampled_from((1, 10, 256)))
    def free_slots(self, end: int, count: int) -> None:
        """The owner zeroes headers, in order or not: the slots are its memory."""
        model = self.ends[end]
        if model.queue is None:
            return
        for slot in range(count):
            address = model.translate(model.queue[0] + (model.enqueue + 16 * slot) % model.queue[1], 0)
            if address is not None and address < PAGES * PAGE:
                self.own_write(self.model.index(model.owner), address, b"\0")

    @rule(end=ends, strange=strange)
    def enable_crq(self, end: int, strange: int) -> None:
        index, address = self.address(end, strange)
        assert self.real[index].port.enable_crq(address) == self.model[index].enable_crq(address)

    # remote DMA

    @rule(index=partitions, length=lengths, source=names, s_ioba=addresses, destination=names, d_ioba=addresses)
    def copy_rdma(self, index: int, length: int, source: int, s_ioba: int, destination: int, d_ioba: int) -> None:
        self.before_call()
        arguments = (length, self.liobn(index, source), s_ioba, self.liobn(index, destination), d_ioba)
        assert self.real[index].port.copy_rdma(*arguments) == self.model[index].copy_rdma(*arguments)
        self.only_windows_changed()

    @rule(pair=st.integers(0, len(PAIRS) - 1), length=lengths, remote=addresses, local=inside, inward=st.booleans())
    def copy_own(self, pair: int, length: int, remote: int, local: int, inward: bool) -> None:
        """A server copies between its two panes."""
        self.before_call()
        end = self.ends[2 * pair]
        index = self.model.index(end.owner)
        assert end.remote_liobn is not None
        there, here = (end.remote_liobn, remote), (end.liobn, local)
        arguments = (length, *there, *here) if inward else (length, *here, *there)
        assert self.real[index].port.copy_rdma(*arguments) == self.model[index].copy_rdma(*arguments)
        self.only_windows_changed()

    @rule(pair=st.integers(0, len(PAIRS) - 1), ioba=inside, data=st.binary(min_size=1, max_size=48))
    def write_and_read_back(self, pair: int, ioba: int, data: bytes) -> None:
        """A server uses its client's window, linked or not."""
        self.before_call()
        end = self.ends[2 * pair]
        index = self.model.index(end.owner)
        assert end.remote_liobn is not None
        port, model = self.real[index].port, self.model[index]
        assert port.write_rdma(end.remote_liobn, ioba, data) == model.write_rdma(end.remote_liobn, ioba, data)
        arguments = (end.remote_liobn, ioba, len(data))
        assert port.read_rdma(*arguments) == model.read_rdma(*arguments)
        self.only_windows_changed()

    @rule(index=partitions, name=names, ioba=addresses, length=st.sampled_from((0, 1, 8, 40, 72, 73)))
    def read_rdma(self, index: int, name: int, ioba: int, length: int) -> None:
        result = self.real[index].port.read_rdma(self.liobn(index, name), ioba, length)
        assert result == self.model[index].read_rdma(self.liobn(index, name), ioba, length)

    @rule(index=partitions, name=names, ioba=addresses, data=st.binary(max_size=49))
    def write_rdma(self, index: int, name: int, ioba: int, data: bytes) -> None:
        self.before_call()
        code = self.real[index].port.write_rdma(self.liobn(index, name), ioba, data)
        assert code == self.model[index].write_rdma(self.liobn(index, name), ioba, data)
        self.only_windows_changed()

    # the partitions themselves

    @rule(index=partitions, page=st.integers(0, PAGES - 1), offset=st.integers(0, PAGE - 8), data=st.binary(max_size=8))
    def work(self, index: int, page: int, offset: int, data: bytes) -> None:
        self.own_write(index, page * PAGE + offset, data)

    @rule(index=partitions)
    def reboot(self, index: int) -> None:
        self.hypervisor.reboot(self.real[index])
        self.model[index].reboot()
        self.load(index)

    @rule(index=partitions)
    def suspend(self, index: int) -> None:
        self.before_call()
        self.hypervisor.suspend(self.real[index])
        self.model[index].suspend()
        self.only_windows_changed()


Isolation.TestCase.settings = settings(
    max_examples=max(300, settings.default.max_examples if settings.default else 0), stateful_step_count=50
)
test_isolation = Isolation.TestCase
