"""Config layouts, and the block device's tables (virtio 1.4, 2.5 and 5.2)."""

from __future__ import annotations

import struct
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio import block, features, ids
from powervio.virtio.block import BlockConfig
from powervio.virtio.config import Field, Layout, Value, snapshot

FEATURE = 1 << 5
LAYOUT = Layout((Field("a", 0, 2), Field("tag", 4, 6, FEATURE, raw=True), Field("b", 12, 4, FEATURE, writable=True)))
VALUES: dict[str, Value] = {"a": 0x0102, "tag": b"xyz", "b": 0x03040506}


@pytest.mark.parametrize(
    ("byteorder", "golden"),
    [("little", "0201000078797a000000000006050403"), ("big", "0102000078797a000000000003040506")],
)
def test_pack_has_golden_bytes_in_both_orders(byteorder: str, golden: str) -> None:
    data = LAYOUT.pack(VALUES, FEATURE, byteorder)
    assert data.hex() == golden
    assert LAYOUT.unpack(data, FEATURE, byteorder) == {**VALUES, "tag": b"xyz\0\0\0"}


def test_pack_field_of_a_feature_not_offered_is_left_out() -> None:
    assert LAYOUT.pack(VALUES, 0, "little").hex() == "0201"
    assert LAYOUT.size(0) == 2
    assert LAYOUT.size(FEATURE) == 16


def test_unpack_short_space_gives_what_is_there_and_long_space_is_good() -> None:
    # virtio 1.4, 2.5.1
    data = LAYOUT.pack(VALUES, FEATURE, "little")
    assert LAYOUT.unpack(data[:15], FEATURE, "little") == {"a": 0x0102, "tag": b"xyz\0\0\0"}
    assert LAYOUT.unpack(data + b"more", FEATURE, "little").keys() == VALUES.keys()
    assert LAYOUT.unpack(data, 0, "little") == {"a": 0x0102}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": 65536}, "does not fit"),
        ({"a": -1}, "does not fit"),
        ({"a": b"x"}, "cannot hold"),
        ({"tag": b"1234567"}, "cannot hold"),
        ({"tag": 1}, "cannot hold"),
        ({"c": 1}, "no such config field: c"),
    ],
)
def test_pack_value_that_is_none_of_the_field_is_a_local_error(values: dict[str, int | bytes], words: str) -> None:
    with pytest.raises(LocalError, match=words):
        LAYOUT.pack(values, FEATURE, "little")


def test_pack_unknown_byte_order_is_a_local_error() -> None:
    with pytest.raises(LocalError, match="byte order 'native'"):
        LAYOUT.pack({}, 0, "native")


@pytest.mark.parametrize("bad", [(Field("a", 0, 2), Field("b", 1, 1)), (Field("a", 0, 3),)])
def test_layout_that_overlaps_or_has_odd_integers_is_a_local_error(bad: tuple[Field, ...]) -> None:
    with pytest.raises(LocalError, match="config field"):
        Layout(bad)


def test_written_whole_writable_field_is_told() -> None:
    assert LAYOUT.written(12, b"\1\0\0\0", FEATURE, "little") == ("b", 1)
    assert LAYOUT.written(12, b"\1\0\0\0", FEATURE, "big") == ("b", 1 << 24)


@pytest.mark.parametrize(
    ("offset", "data", "offered"),
    [
        (0, b"\1\0", FEATURE),
        (12, b"\1\0", FEATURE),
        (13, b"\1\0\0\0", FEATURE),
        (12, b"\1\0\0\0", 0),
        (99, b"", FEATURE),
    ],
)
def test_written_anything_else_is_rejected(offset: int, data: bytes, offered: int) -> None:
    with pytest.raises(RemoteError, match="no writable field") as caught:
        LAYOUT.written(offset, data, offered, "little")
    assert caught.value.verdict is Verdict.REJECT


def test_snapshot_generation_changing_is_read_again() -> None:
    # virtio 1.4, 2.5.1
    generations = iter([1, 2, 3, 3])
    values = iter(["torn", "torn again", "whole"])
    assert snapshot(lambda: next(generations), lambda: next(values)) == "whole"


def test_snapshot_that_never_stands_still_is_a_remote_error() -> None:
    generations = iter(range(100))
    with pytest.raises(RemoteError, match="each of 8 reads"):
        snapshot(lambda: next(generations), lambda: 0)
    assert next(generations) == 9


def test_ids_known_and_unknown_have_a_name() -> None:
    assert ids.name(ids.BLOCK) == "block device"
    assert ids.name(14) == "device type 14"


# Block


def test_block_layout_matches_the_structure_of_the_standard() -> None:
    # virtio 1.4, 5.2.4: the C structure has no padding, so this Struct is the same
    by_hand = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIIIIIIIIB3x")
    assert by_hand.size == 96 == block.LAYOUT.size(block.F_ZONED)
    values = {field.name: number + 1 for number, field in enumerate(fields(BlockConfig))}
    everything = (1 << 24) - 1
    packed = block.pack_config(BlockConfig(**values), "little", everything)
    assert by_hand.unpack(packed) == tuple(values.values())


def test_block_config_up_to_write_zeroes_by_default() -> None:
    config = BlockConfig(capacity=2048, blk_size=512, write_zeroes_may_unmap=1, zone_model=1)
    packed = block.pack_config(config, "big")
    assert len(packed) == 60
    assert block.unpack_config(packed, "big") == BlockConfig(capacity=2048, blk_size=512, write_zeroes_may_unmap=1)


@given(st.binary(max_size=128), st.sampled_from(["little", "big"]))
def test_block_any_bytes_as_config_are_unpacked(data: bytes, byteorder: str) -> None:
    config = block.unpack_config(data, byteorder)
    packed = block.pack_config(config, byteorder, (1 << 24) - 1)
    assert block.unpack_config(packed, byteorder) == config


def test_block_writeback_is_the_only_writable_field() -> None:
    writable = [(field.name, field.offset) for field in block.LAYOUT.fields if field.writable]
    assert writable == [("writeback", block.WRITEBACK_OFFSET)]


def test_block_request_header_and_segment_have_golden_bytes() -> None:
    # virtio 1.4, 5.2.6
    header, segment = (block.T_OUT, 0, 0x0102030405060708), (0x10, 8, block.SEGMENT_UNMAP)
    assert block.REQUEST_HEADER["little"].pack(*header).hex() == "01000000000000000807060504030201"
    assert block.REQUEST_HEADER["big"].pack(*header).hex() == "00000001000000000102030405060708"
    assert block.SEGMENT["little"].pack(*segment).hex() == "10000000000000000800000001000000"
    assert block.SEGMENT["big"].pack(*segment).hex() == "00000000000000100000000800000001"


def test_block_zoned_needs_version_1() -> None:
    # virtio 1.4, 5.2.5.2
    assert features.missing_dependencies(block.F_ZONED, ids.BLOCK) == ["ZONED requires VERSION_1"]


def test_block_config_wce_cannot_be_offered_without_flush() -> None:
    # virtio 1.4, 5.2.5.2
    with pytest.raises(LocalError, match="CONFIG_WCE is offered with FLUSH"):
        features.offer(block.F_CONFIG_WCE, features.VERSION_1, ids.BLOCK)


def test_block_config_wce_without_flush_can_be_accepted() -> None:
    # virtio 1.4, 5.2.5.2: the device then initializes writeback to 0
    accepted = block.F_CONFIG_WCE | features.VERSION_1
    features.check_accepted(accepted | block.F_FLUSH, accepted, ids.BLOCK)
