"""Fuzzing from the guest's side: whatever a guest writes into its region, its tables, its queues and its memory,
nothing fails here, nobody else's memory changes, and another guest of the same VIO server goes on.

Three ways to the same world (`hostile.py`): hypothesis, which shortens what fails; libFuzzer, which looks for what
leads somewhere new; and what they have found, which stays as tests of its own.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.exploring import explore
from tests.gateway.hostile import MESSAGES, MIB, TOKENS, U64, World, play
from tests.gateway.stores import PAGE

pytestmark = pytest.mark.timeout(900)

FOUND = [""]
"""Inputs of `play` in hexadecimal that failed once, each with a word about what it was; the first does nothing."""
LENGTH = 400

values = st.integers(0, 24) | st.integers(0, U64)
"""Numbers of interesting values, or values."""
chunks = st.binary(min_size=1, max_size=64)


class HostileGuest(RuleBasedStateMachine):
    """Anything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def teardown(self) -> None:
        self.world.close()

    def value(self, choice: int) -> int:
        known = self.world.interesting
        return known[choice] if choice < len(known) else choice

    @rule(offset=st.integers(0, 0x2000) | st.integers(MIB, MIB + 2 * PAGE), data=chunks)
    def region(self, offset: int, data: bytes) -> None:
        self.world.write_region(offset, data)

    @rule(offset=st.integers(0, 16 * PAGE), data=chunks)
    def memory(self, offset: int, data: bytes) -> None:
        self.world.write_memory(offset, data)

    @rule(page=st.integers(0, 255), tce=st.integers(0, 300).map(lambda page: page * PAGE | 3) | st.integers(0, U64))
    def tce(self, page: int, tce: int) -> None:
        self.world.write_tce(page, tce)

    @rule(token=st.sampled_from(TOKENS) | st.integers(0, U64), choices=st.lists(values, max_size=9), now=st.booleans())
    def hcall(self, token: int, choices: list[int], now: bool) -> None:
        self.world.post(token, [self.value(choice) for choice in choices])
        if now:
            self.world.turn()

    @rule(
        kind=st.sampled_from(MESSAGES) | st.integers(0, 255),
        session=st.just(1) | st.integers(0, 3),
        rest=st.integers(0, 20) | st.integers(0, (1 << 32) - 1),
        low=values,
    )
    def message(self, kind: int, session: int, rest: int, low: int) -> None:
        self.world.message(0x80, kind, session, rest, self.value(low))
        self.world.turn()

    @rule(header=st.integers(0, 0xFF), kind=st.integers(0, 255), low=st.integers(0, U64))
    def element(self, header: int, kind: int, low: int) -> None:
        self.world.message(header, kind, 0, 0, low)
        self.world.turn()

    @rule()
    def kick(self) -> None:
        self.world.guest.driver.kick()
        self.world.turn()

    @rule()
    def turn(self) -> None:
        self.world.turn()

    @invariant()
    def nothing_has_failed_and_the_neighbour_goes_on(self) -> None:
        self.world.check()


_many = settings.default is not None and settings.default.max_examples > 1000
HostileGuest.TestCase.settings = settings(max_examples=600 if _many else 40, stateful_step_count=40)
test_hostile_guest = pytest.mark.dual(HostileGuest.TestCase)


@pytest.mark.dual
@pytest.mark.parametrize("data", FOUND)
def test_what_was_found_once(data: str) -> None:
    play(bytes.fromhex(data))


def seeds(folder: Path, count: int) -> None:
    """Inputs to begin with."""
    for number in range(count):
        (folder / f"seed-{number}").write_bytes(random.Random(number).randbytes(LENGTH))


def test_exploring(tmp_path: Path) -> None:
    seeds(tmp_path, 40)
    explore(tmp_path, "tests.gateway.fuzz_guest", play, 1_000, 6)


@pytest.mark.slow
def test_exploring_for_long(tmp_path: Path) -> None:
    seeds(tmp_path, 40)
    explore(tmp_path, "tests.gateway.fuzz_guest", play, 1_000_000, 300)
