"""What of pool and window each queue has, and what becomes of mappings that cannot be ended at once."""

from __future__ import annotations

import ctypes

import pytest

from .rig import BLOCK, NET, PAGE, Part, Rig, rig

FRAME = 1536
SECOND = 250  # jiffies
PAIRS = 4
QUEUES = 2 * PAIRS + 1


def fill(made: Rig, queue: int, length: int, count: int = 256) -> None:
    """What a network driver does: it makes as many receive buffers available as it can."""
    for _ in range(count):
        made.add(queue, Part(length, written=True))
    made.notify(queue)


@pytest.mark.parametrize("shared", [True, False])
def test_receiving_queues_leave_each_other_their_parts_of_the_pool(library: ctypes.CDLL, shared: bool) -> None:
    with rig(library, NET, QUEUES, shared=shared) as made:
        for queue in range(0, 2 * PAIRS, 2):
            fill(made, queue, FRAME)
        # the last quarter is for what is sent; half of the others is for whoever comes first
        assert [made.shown(queue) for queue in range(0, 2 * PAIRS, 2)] == [256, 128, 64, 64]
        made.add(1, *[Part(FRAME)] * 100)
        made.notify(1)
        assert made.shown(1) == 1
        # who has little has it back when something has come in, whoever else waits
        for head in range(64):
            made.serve(6, head, 100)
        assert made.shown(6) == 128
        made.serve(0, 0, 100)
        made.pass_time(SECOND)
        assert made.shown(0) == 256
        assert sum(made.shown(queue) for queue in (2, 4, 6)) == 128 + 64 + 128 + 1


@pytest.mark.parametrize("shared", [True, False])
def test_receiving_queues_leave_each_other_and_the_senders_their_parts_of_the_window(
    library: ctypes.CDLL, shared: bool
) -> None:
    with rig(library, NET, QUEUES, shared=shared) as made:
        own = made.count("mapped")
        for queue in range(0, 2 * PAIRS, 2):
            fill(made, queue, 16 * PAGE)
        received = 4096 - 4096 // 4 - 1 - own
        common = received // 2
        each = (received - common) // PAIRS // 16
        shown = [made.shown(queue) for queue in range(0, 2 * PAIRS, 2)]
        assert min(shown) >= each
        assert max(shown[1:]) <= each + 1  # the first one has taken what is common
        assert sum(shown) * 16 <= received
        made.add(1, *[Part(16 * PAGE)] * 60)
        made.notify(1)
        assert made.shown(1) == 1


def test_what_is_received_leaves_the_last_part_of_the_window_in_one_piece(library: ctypes.CDLL) -> None:
    with rig(library, NET, 2) as made:
        heads = [made.add(1, Part(1500 * PAGE))[0] for _ in range(2)]
        made.notify(1)
        assert made.shown(1) == 2
        for head in heads:
            made.serve(1, head, 0)
        fill(made, 0, PAGE)
        assert made.shown(0) == 256
        assert all(made.address(0, head) < 12 << 20 for head in range(256))


def test_buffer_that_is_larger_than_a_queue_s_own_part_is_received_into_all_the_same(library: ctypes.CDLL) -> None:
    with rig(library, NET, 64, pool_kib=64) as made:
        fill(made, 0, PAGE - 64)
        for queue in range(2, 8, 2):
            fill(made, queue, PAGE - 64)
            assert made.shown(queue) == 1


def test_queue_that_finds_no_room_looks_for_it_less_and_less_often(library: ctypes.CDLL) -> None:
    with rig(library, NET, 2, pool_kib=64) as made:
        fill(made, 0, FRAME)
        assert made.shown(0) == 32
        assert made.pass_time(SECOND) < 30
        made.serve(0, 0, 100)  # its own comes back: no timer is needed
        assert made.shown(0) == 33


def test_queue_that_finds_no_room_is_looked_at_soon_when_another_one_gives_some_back(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 2, pool_kib=64) as made:
        heads = [made.add(0, Part(16), Part(3000, written=True), Part(1, written=True))[0] for _ in range(40)]
        made.notify(0)
        shown = made.shown(0)
        assert 0 < shown < 40
        made.add(1, Part(16), Part(3000, written=True), Part(1, written=True))
        made.notify(1)
        assert made.shown(1) == 0
        made.pass_time(SECOND)
        made.use(0, heads[0], 1)
        made.use(0, heads[1], 1)
        library.rig_quiet(0)  # takes what was used, and takes no room for more
        made.pass_time(13)
        assert made.shown(1) == 1


def test_queue_is_woken_by_another_one_s_completion(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 2, pool_kib=64) as made:
        heads = [made.add(0, Part(16), Part(3000, written=True), Part(1, written=True))[0] for _ in range(20)]
        made.notify(0)
        assert made.shown(0) == 20
        for _ in range(2):
            made.add(1, Part(16), Part(3000, written=True), Part(1, written=True))
        made.notify(1)
        assert made.shown(1) == 0
        made.pass_time(SECOND)
        made.serve(0, heads[0], 1)
        made.pass_time(1)
        assert made.shown(1) == 1


def test_large_parts_of_a_chain_leave_room_in_a_small_pool_for_its_small_ones(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1, shared=False, pool_kib=64) as made:
        made.add(0, Part(16), *[Part(PAGE, place=512)] * 20, Part(3000), Part(3000), Part(1, written=True))
        made.notify(0)
        assert made.used(0)[0] == 0
        assert made.shown(0) == 1


def test_pages_that_the_hypervisor_refuses_to_unmap_are_not_used_again_before_it_has(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1, window=1 << 20, shared=False, pool_kib=64) as made:
        own = made.count("mapped")
        library.rig_refuse(3)
        for _ in range(50):
            head, _ = made.add(0, Part(16), Part(16 * PAGE), Part(1, written=True))
            made.notify(0)
            made.serve(0, head, 1)
            library.rig_carry_out()
        assert made.used(0)[0] == 50
        assert made.count("reused") == 0
        assert made.count("mapped") == own + 3 * 16
        made.pass_time(10)
        library.rig_carry_out()
        assert made.count("mapped") == own
        assert made.count("stuffed") <= 1 + 50 + 3 + 1  # that of the beginning, and what was refused is asked for again


def test_refusal_that_does_not_end_is_told_and_the_memory_is_not_given_to_others(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1, shared=False) as made:
        head, _ = made.add(0, Part(16), Part(16 * PAGE), Part(1, written=True))
        made.notify(0)
        library.rig_refuse(1 << 30)
        made.serve(0, head, 1)
        library.rig_forget(0)
        assert made.messages.count("pages cannot be unmapped: the server is still at them") == 1
        library.rig_refuse(0)


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_is_lost_of_what_could_not_be_unmapped_while_the_hypervisor_stood_still(
    library: ctypes.CDLL, shared: bool
) -> None:
    with rig(library, BLOCK, 1, 1024, shared=shared) as made:
        own = made.count("mapped")
        # every other one is served, so that no two can be unmapped together
        heads = [made.add(0, Part(16), Part(5 * PAGE), Part(1, written=True))[0] for _ in range(320)]
        made.notify(0)
        assert made.shown(0) == 320
        if shared:
            ctypes.c_uint64.in_dll(library, "rig_use_word").value = 1
        library.rig_stall(ctypes.c_bool(True))
        for head in heads[::2]:
            made.serve(0, head, 1)
        library.rig_stall(ctypes.c_bool(False))
        for head in heads[1::2]:
            made.serve(0, head, 1)
        for _ in range(4):
            made.pass_time(10)
            library.rig_carry_out()
        assert made.count("mapped") == own
        assert made.count("stuffed") >= 1 + 320 // 2 if shared else 320
        assert made.used(0)[0] == 320
        # all of the window is there again
        for _ in range(300):
            made.add(0, Part(16), Part(10 * PAGE), Part(1, written=True))
        made.notify(0)
        assert made.shown(0) == 620


def test_descriptors_are_put_together_to_no_more_than_the_device_takes(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1) as made:
        parts = (Part(16), *[Part(PAGE)] * 5, Part(1, written=True))
        head, _ = made.add(0, *parts)
        made.notify(0)
        assert made.descriptors(0, head) == [16, 5 * PAGE, 1]
        library.rig_longest(2 * PAGE)
        head, _ = made.add(0, *parts)
        made.notify(0)
        assert made.descriptors(0, head) == [16, 2 * PAGE, 2 * PAGE, PAGE, 1]
