"""An image in memory that is cut off under the VIO server: what was a copy through its mapping is an error at most."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.transport.test_crq_batch import BLOCK, Rig, numbered

from powervio import _compiled
from powervio.devices.block import BlockOptions
from powervio.memory.target import FileTarget
from powervio.storage.image import Image, open_image
from powervio.virtio import block as blk

pytestmark = pytest.mark.dual

COUNT = 64


@pytest.fixture
def image(memory_folder: Path) -> Iterator[Image]:
    path = memory_folder / "image"
    path.write_bytes(b"".join(numbered(block + 1) for block in range(COUNT)))
    with open_image(path) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["copied", "redirected"])
def rig(request: pytest.FixtureRequest, image: Image) -> Iterator[Rig]:
    made = Rig(image, redirect=request.param, options=BlockOptions())
    for _ in range(2):  # what is not known to have data goes by descriptor
        for block in range(0, COUNT, 16):
            for number in range(16):
                made.read(number, block + number)
            made.kick()
            assert [made.page(number) for number in range(16)] == [numbered(block + number + 1) for number in range(16)]
    assert target(made).mapped is _compiled.is_compiled()
    if _compiled.is_compiled():
        assert target(made).mapping.known == COUNT * BLOCK
    yield made
    made.client.pair.close()


def target(rig: Rig) -> FileTarget:
    assert rig.image.target is not None
    return rig.image.target


def test_read_of_what_was_cut_off_is_an_error_and_later_zeroes(rig: Rig) -> None:
    os.truncate(rig.image.path, 8 * BLOCK)
    for number, block in enumerate((7, 8, 9, 40, 7, 0)):
        rig.read(number, block)
    rig.kick()
    assert rig.statuses(6) == [blk.S_OK, *[blk.S_IOERR] * 3, blk.S_OK, blk.S_OK]
    assert [rig.page(number) for number in (0, 4, 5)] == [numbered(8), numbered(8), numbered(1)]
    assert not target(rig).mapped, "once something was missing a mapping is done with"
    if _compiled.is_compiled():
        assert target(rig).mapping.broken
    os.truncate(rig.image.path, COUNT * BLOCK)
    rig.write(0, 41, b"\x07" * BLOCK)
    for number, block in ((1, 7), (2, 40)):
        rig.read(number, block)
    rig.kick()
    assert rig.statuses(3) == [blk.S_OK] * 3
    assert (rig.page(1), rig.page(2)) == (numbered(8), bytes(BLOCK))
    assert Path(rig.image.path).read_bytes()[41 * BLOCK : 42 * BLOCK] == b"\x07" * BLOCK


def test_rest_of_the_last_page_is_lost_too_and_does_not_break_the_mapping(rig: Rig) -> None:
    os.truncate(rig.image.path, 8 * BLOCK + 512)
    rig.read(0, 8)
    rig.read(1, 7)
    rig.kick()
    assert rig.statuses(2) == [blk.S_IOERR, blk.S_OK]
    os.truncate(rig.image.path, COUNT * BLOCK)
    rig.read(0, 8)
    rig.kick()
    assert rig.statuses(1) == [blk.S_OK]
    assert rig.page(0) == numbered(9)[:512] + bytes(BLOCK - 512)
    assert target(rig).mapped is _compiled.is_compiled()


def test_nothing_is_written_while_something_is_lost(rig: Rig) -> None:
    os.truncate(rig.image.path, 8 * BLOCK + 512)
    for number, block in enumerate((0, 8, 40)):
        rig.write(number, block, b"\x07" * BLOCK)
    rig.kick()
    assert rig.statuses(3) == [blk.S_IOERR] * 3
    assert Path(rig.image.path).read_bytes() == b"".join(numbered(block + 1) for block in range(9))[: 8 * BLOCK + 512]
    assert rig.device.counters.errors == {"backing": 3}


def test_hole_that_somebody_else_punched_is_zeroes_through_the_mapping(rig: Rig) -> None:
    """It costs the memory of a page; a hole of our own does not."""
    with open_image(rig.image.path, lock=False) as other:
        other.discard(4 * BLOCK, BLOCK)
    rig.image.discard(5 * BLOCK, BLOCK)
    blocks = os.stat(rig.image.path).st_blocks
    assert blocks == (COUNT - 2) * BLOCK // 512
    rig.read(0, 4)
    rig.read(1, 5)
    rig.kick()
    assert (rig.page(0), rig.page(1)) == (bytes(BLOCK), bytes(BLOCK))
    more = BLOCK // 512 if _compiled.is_compiled() else 0
    assert os.stat(rig.image.path).st_blocks == blocks + more


def test_image_that_shrinks_by_our_own_hand_is_known_anew(rig: Rig) -> None:
    rig.image.resize(8 * BLOCK)
    rig.image.resize(COUNT * BLOCK)
    rig.read(0, 7)
    rig.read(1, 8)
    rig.kick()
    assert (rig.page(0), rig.page(1)) == (numbered(8), bytes(BLOCK))
    assert os.stat(rig.image.path).st_blocks == 8 * BLOCK // 512
    assert target(rig).mapped is _compiled.is_compiled()


def test_two_threads_that_meet_the_loss_at_the_same_time_are_both_told(memory_folder: Path) -> None:
    path = memory_folder / "shared"
    for _ in range(20):
        path.write_bytes(b"".join(numbered(block + 1) for block in range(COUNT)))
        with open_image(path) as image, ExitStack() as stack:
            rigs = [Rig(image, redirect=False) for _ in range(2)]
            for rig in rigs:
                stack.callback(rig.client.pair.close)
            for _ in range(2):
                for number in range(16):
                    rigs[0].read(number, number)
                rigs[0].kick()
            os.truncate(path, 8 * BLOCK)
            for rig in rigs:
                for number in range(16):
                    rig.read(number, (4 + number) % 16)
            threads = [threading.Thread(target=rig.kick) for rig in rigs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            for rig in rigs:
                assert rig.statuses(16) == [*[blk.S_OK] * 4, *[blk.S_IOERR] * 8, *[blk.S_OK] * 4]
                assert [rig.page(number) for number in (0, 3, 12)] == [numbered(5), numbered(8), numbered(1)]
            assert image.target is not None
            assert not image.target.mapped
