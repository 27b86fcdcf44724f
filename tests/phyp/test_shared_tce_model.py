"""The isolation models with tables that their owners write themselves: whatever stands there, no byte is moved that a
good entry does not name, and what is redirected stays where it is."""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from powervio.memory.area import MappedArea
from powervio.papr.codes import ReturnCode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.ledger import CostLedger
from powervio.phyp.partition import Partition

from .model import ModelEnd
from .test_isolation_model import PAGE, PAGES, PAIRS, ends, entries
from .test_redirect_model import ARGUMENTS, OFTEN, Redirected
from .test_redirect_model import entry as an_entry

pytestmark = [pytest.mark.dual, pytest.mark.timeout(900)]

WALK_STEPS = 10_000
WALK_LENGTH = 2_500
raw = entries | st.integers(0, 2**64 - 1) | st.sampled_from((PAGES * PAGE | 3, 2**64 - 1, 0xFFC, 1 << 63 | 3))


class Shared(Redirected):
    """As `Redirected`; each table is shared, and entries are made by stores as well."""

    def __init__(self) -> None:
        self.stores: dict[int, tuple[memoryview, memoryview]] = {}
        """By LIOBN: table and use word."""
        self.ledgers: list[CostLedger] = []
        super().__init__()

    def make_pair(self, pair: int) -> list[ModelEnd]:
        made = super().make_pair(pair)
        for index, end in zip(PAIRS[pair], made, strict=True):
            adapter = self.real[index].adapters[end.unit_address]
            store, use = memoryview(bytearray(end.size // PAGE * 8)), memoryview(bytearray(8))
            assert adapter.table is not None
            adapter.table.share(store, use, adapter.ledger)
            self.stores[end.liobn] = (store, use)
            self.ledgers.append(adapter.ledger)
        return made

    @rule(end=ends, page=st.integers(0, 9), entry=raw)
    def store(self, end: int, page: int, entry: int) -> None:
        """An entry by a store: whatever is no good maps nothing."""
        model = self.ends[end]
        if page >= model.size // PAGE:
            return
        self.stores[model.liobn][0][8 * page : 8 * page + 8] = entry.to_bytes(8, "little")
        model.tces[page] = entry if not entry & 3 or entry // PAGE < PAGES else 0

    @invariant()
    def pinned_pages_keep_their_entries(self) -> None:
        """They do not here: the owner is free to store. What an operation has is compared when it moves."""

    @invariant()
    def what_is_redirected_is_in_use(self) -> None:
        for end in self.ends:
            if end.copies and end.owner.ends:
                assert any(self.stores[end.liobn][1])


Shared.TestCase.settings = settings(
    max_examples=(settings.default.max_examples if settings.default else 100) // 3, stateful_step_count=50
)
test_isolation_with_shared_tables = Shared.TestCase


def test_walk_with_stores() -> None:
    arguments_of = {
        **ARGUMENTS,
        "store": (
            lambda r: r.randrange(6),
            lambda r: r.randrange(10),
            lambda r: an_entry(r) if r.random() < 0.8 else r.getrandbits(64),
        ),
    }
    often = {**OFTEN, "store": 12}
    names = [name for name in arguments_of for _ in range(often.get(name, 1))]
    seed = random.SystemRandom().randrange(1 << 32)
    flown = met = 0
    for start in range(0, WALK_STEPS, WALK_LENGTH):
        choose = random.Random(seed + start)
        machine = Shared()
        machine.start([0, 1, 2, 3, 4, 5, 6, 7])
        call = ""
        try:
            for _ in range(WALK_LENGTH):
                name = choose.choice(names)
                arguments = [make(choose) for make in arguments_of[name]]
                call = f"{name}{tuple(arguments)}"
                getattr(machine, name)(*arguments)
                machine.nothing_else_changed()
                machine.the_dead_keep_their_memory_while_it_is_used()
                machine.what_is_redirected_is_in_use()
                flown += name == "move" and bool(machine.flights)
            met += sum(ledger.shared_tce_updates for ledger in machine.ledgers)
            machine.teardown()
        except Exception as error:
            raise AssertionError(f"seed {seed}, part from {start}: {call}") from error
    # the walk has to lead somewhere
    assert flown > WALK_STEPS // 100
    assert met > WALK_STEPS // 200


@contextmanager
def flipping(store: memoryview, values: list[int]) -> Iterator[None]:
    """Another process that stores these entries in the first places of a table, round and round."""
    child = os.fork()
    if child == 0:
        try:
            words = [value.to_bytes(8, "little") * (len(store) // 8) for value in values]
            words += [
                b"".join(word[8 * i : 8 * i + 8] for i, word in enumerate(words * (len(store) // 8)))[: len(store)]
            ]
            signal.alarm(60)  # also when nobody ends it
            while True:
                for word in words:
                    store[:] = word
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class Rig:
    """A server and a client of 16 pages, linked, whose tables are shared and are in an area that processes share."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.server, self.client = (self.hypervisor.create_partition(name, 16 * PAGE) for name in ("server", "client"))
        self.ends = self.hypervisor.create_pair(
            self.server, self.client, server_window=8 * PAGE, client_window=4 * PAGE
        )
        remote = self.ends[0].remote_pane
        assert remote is not None
        self.remote, self.local = remote.liobn, self.ends[0].window.liobn
        self.area = MappedArea.create("powervio-test-tces", 2 * PAGE)
        view = self.area.view
        self.stores = [view[:64], view[64 : 64 + 32]]
        self.uses = [view[PAGE : PAGE + 8], view[PAGE + 8 : PAGE + 16]]
        for partition, end, store, use in zip(
            (self.server, self.client), self.ends, self.stores, self.uses, strict=True
        ):
            partition.port.put_tce(end.window.liobn, 0, 3)
            partition.port.reg_crq(end.unit_address, 0, PAGE)
            assert end.table is not None
            end.table.share(store, use, end.ledger)
            partition.memory[:] = b"\xc5" * len(partition.memory)

    def touched(self, partition: Partition) -> set[int]:
        """Pages that are not as they were."""
        memory = partition.memory
        return {page for page in range(16) if bytes(memory[page * PAGE : page * PAGE + PAGE]) != b"\xc5" * PAGE}

    def close(self) -> None:
        assert bytes(self.area.view[PAGE : PAGE + 16]) == bytes(16)  # nothing is in use
        self.hypervisor.close()
        self.stores, self.uses = [], []
        self.area.close()


def until(codes: set[int], wanted: set[ReturnCode], rounds: int = 10_000) -> Iterator[int]:
    """So many rounds, and more until the other process has had its effect: it shares a processor with others."""
    end = time.monotonic() + 60
    for number in itertools.count():
        if number >= rounds and wanted <= codes:
            return
        assert time.monotonic() < end, codes
        yield number


VALUES = [3 * PAGE | 3, 0, 5 * PAGE | 3, (1 << 64) - 1, 1 << 40 | 3, 3 * PAGE | 1, 7 * PAGE | 2, (1 << 64) - PAGE]
"""What a table is made to hold in turn: pages 3, 5 and 7, and what names no page."""


def test_entries_that_change_all_the_time_name_nothing_but_what_was_good() -> None:
    """One load for each use: between check and copy nothing is looked at again."""
    rig = Rig()
    server, here = rig.server.port, rig.ends[0]
    rig.stores[0][:] = b"".join((page * PAGE | 3).to_bytes(8, "little") for page in range(8))
    rig.server.memory[PAGE : 5 * PAGE] = b"\x5c" * 4 * PAGE
    codes: set[int] = set()
    with flipping(rig.stores[1], VALUES):
        for _ in until(codes, {ReturnCode.H_SUCCESS, ReturnCode.H_PERMISSION}):
            codes.add(server.copy_rdma(4 * PAGE, rig.local, PAGE, rig.remote, 0))
            codes.add(server.write_rdma(rig.remote, PAGE - 4, b"\x5c" * 8))
            codes.add(server.read_rdma(rig.remote, PAGE - 4, 8)[0])
            codes.add(server.send_crq(here.unit_address, 0x8080 << 48, 0))
    assert rig.touched(rig.client) <= {3, 5, 7}
    assert rig.ends[1].ledger.shared_tce_updates > 0
    rig.close()


def test_source_and_target_with_entries_in_common_that_change() -> None:
    """The second range's loads are not behind the first one's check: page 7 is mapped for writing alone, never read."""
    rig = Rig()
    rig.stores[0][:24] = struct.pack("<3Q", 3 * PAGE | 3, 0, 3 * PAGE | 3)
    codes: set[int] = set()
    with flipping(rig.stores[0][8:16], [5 * PAGE | 3, 7 * PAGE | 2]):
        for _ in until(codes, {ReturnCode.H_SUCCESS, ReturnCode.H_PERMISSION}, 50_000):
            rig.server.memory[7 * PAGE] = 0xAA
            codes.add(rig.server.port.copy_rdma(2 * PAGE, rig.local, PAGE, rig.local, 0))
            assert rig.server.memory[3 * PAGE] == rig.server.memory[5 * PAGE] == 0xC5
    assert rig.touched(rig.server) <= {7}  # it copies what is the same everywhere else
    rig.close()
