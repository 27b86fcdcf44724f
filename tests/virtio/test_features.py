"""Feature bits: names, dependencies, negotiation (virtio 1.4, 2.2 and chapter 6)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.virtio import block, features, ids
from powervio.virtio.features import (
    ACCESS_PLATFORM,
    ADMIN_VQ,
    ANY_LAYOUT,
    EVENT_IDX,
    INDIRECT_DESC,
    NOTIF_CONFIG_DATA,
    SOCKET_ONLY,
    SR_IOV,
    SUSPEND,
    VERSION_1,
    Feature,
)

MADE_UP = 60
A, B, C, D, HIGH = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 70

sets = st.integers(0, 2**128 - 1)


@pytest.fixture(autouse=True)
def _made_up_device() -> Iterator[None]:
    features.register(
        MADE_UP,
        (
            Feature(A, "A"),
            Feature(B, "B", (A,)),
            Feature(C, "C", (A | B,)),
            Feature(D, "D", (C,)),
            Feature(HIGH, "HIGH"),
        ),
    )
    yield
    features.register(MADE_UP, ())


@pytest.mark.parametrize(
    ("mask", "bit"),
    [
        # virtio 1.4, chapter 6
        (INDIRECT_DESC, 28),
        (EVENT_IDX, 29),
        (VERSION_1, 32),
        (ACCESS_PLATFORM, 33),
        (features.RING_PACKED, 34),
        (features.IN_ORDER, 35),
        (features.ORDER_PLATFORM, 36),
        (SR_IOV, 37),
        (features.NOTIFICATION_DATA, 38),
        (NOTIF_CONFIG_DATA, 39),
        (features.RING_RESET, 40),
        (ADMIN_VQ, 41),
        (SUSPEND, 43),
    ],
)
def test_transport_bits_have_the_numbers_of_the_standard(mask: int, bit: int) -> None:
    assert mask == 1 << bit
    assert not mask & features.DEVICE_BITS


def test_ranges_cover_what_the_standard_does_not_reserve() -> None:
    # virtio 1.4, 2.2: 44 to 49 and 128 and above are reserved
    reserved = features.ALL_BITS & ~features.DEVICE_BITS & ~features.TRANSPORT_BITS
    assert [mask.bit_length() - 1 for mask in features.each(reserved)] == [44, 45, 46, 47, 48, 49]


def test_names_of_a_set_lowest_first_with_numbers_for_unknown_bits() -> None:
    bits = block.F_FLUSH | VERSION_1 | 1 << 45 | 1 << 127
    assert features.names(bits, ids.BLOCK) == ["FLUSH", "VERSION_1", "bit 45", "bit 127"]
    assert features.names(block.F_FLUSH) == ["bit 9"]


def test_register_bit_of_the_transports_is_a_local_error() -> None:
    with pytest.raises(LocalError, match="not one bit of the range"):
        features.register(MADE_UP, (Feature(EVENT_IDX, "X"),))


def test_register_same_bit_twice_is_a_local_error() -> None:
    with pytest.raises(LocalError, match="same bit 0"):
        features.register(MADE_UP, (Feature(A, "A"), Feature(A, "Z")))


def test_missing_dependencies_names_each() -> None:
    assert features.missing_dependencies(B | D, MADE_UP) == ["B requires A", "D requires C"]
    assert features.missing_dependencies(C, MADE_UP) == ["C requires A or B"]
    assert features.missing_dependencies(A | B | C | D, MADE_UP) == []


def test_without_incomplete_drops_what_depended_on_what_is_dropped() -> None:
    assert features.without_incomplete(B | C | D, MADE_UP) == 0
    assert features.without_incomplete(A | C | D, MADE_UP) == A | C | D


@given(bits=sets)
def test_without_incomplete_gives_a_complete_part(bits: int) -> None:
    part = features.without_incomplete(bits, MADE_UP)
    assert part & ~bits == 0
    assert features.missing_dependencies(part, MADE_UP) == []


def test_offer_is_both_parts_together() -> None:
    assert features.offer(A | B | HIGH, VERSION_1 | EVENT_IDX, MADE_UP) == A | B | HIGH | VERSION_1 | EVENT_IDX


def test_offer_without_version_1_has_32_bits() -> None:
    # virtio 1.4, 2.2.3
    assert features.offer(A | HIGH, EVENT_IDX | ANY_LAYOUT, MADE_UP) == A | EVENT_IDX | ANY_LAYOUT
    with pytest.raises(LocalError, match="cannot carry ACCESS_PLATFORM"):
        features.offer(A, ACCESS_PLATFORM, MADE_UP)


def test_offer_with_version_1_has_no_bit_that_is_legacy_only() -> None:
    assert features.offer(block.F_SCSI | block.F_RO, VERSION_1 | ANY_LAYOUT, ids.BLOCK) == block.F_RO | VERSION_1


@pytest.mark.parametrize("mask", [SOCKET_ONLY, ADMIN_VQ, SR_IOV, NOTIF_CONFIG_DATA, 1 << 44, 1 << 128, A])
def test_offer_transport_bit_that_no_transport_has_is_a_local_error(mask: int) -> None:
    with pytest.raises(LocalError, match="the transport cannot offer"):
        features.offer(0, VERSION_1 | mask, MADE_UP)


@pytest.mark.parametrize("mask", [SOCKET_ONLY, EVENT_IDX, ADMIN_VQ, 1 << 44, 1 << 128])
def test_offer_device_bit_out_of_its_range_is_a_local_error(mask: int) -> None:
    with pytest.raises(LocalError, match="device type 60 cannot offer"):
        features.offer(mask, VERSION_1, MADE_UP)


def test_offer_missing_dependency_is_a_local_error() -> None:
    # virtio 1.4, 2.2.2
    with pytest.raises(LocalError, match="B requires A"):
        features.offer(B, VERSION_1, MADE_UP)


def test_check_accepted_valid_subset_passes() -> None:
    features.check_accepted(A | B | C | VERSION_1, A | C | VERSION_1, MADE_UP)


@pytest.mark.parametrize(
    ("offered", "accepted", "words"),
    [
        (A | VERSION_1, A | EVENT_IDX | VERSION_1, "EVENT_IDX, not offered"),
        (A | VERSION_1, A, "did not accept VERSION_1"),
        (A | B | VERSION_1, B | VERSION_1, "B requires A"),
        (A | VERSION_1, 1 << 200 | VERSION_1, "bit 200, not offered"),
    ],
)
def test_check_accepted_invalid_set_is_rejected(offered: int, accepted: int, words: str) -> None:
    # virtio 1.4, 2.2.1 and 6.1
    with pytest.raises(RemoteError, match=words) as caught:
        features.check_accepted(offered, accepted, MADE_UP)
    assert caught.value.verdict is Verdict.REJECT


def test_check_accepted_legacy_driver_of_a_transitional_device_passes() -> None:
    # virtio 1.4, 2.2.3
    offered = A | HIGH | SOCKET_ONLY | VERSION_1
    assert features.legacy(offered) == A
    features.check_accepted(features.legacy(offered), A, MADE_UP)


def test_choose_takes_what_is_wanted_offered_and_complete() -> None:
    assert features.choose(A | C | D | VERSION_1, A | B | D | VERSION_1, MADE_UP) == A | VERSION_1


def test_choose_accepts_version_1_whenever_it_is_offered() -> None:
    # virtio 1.4, 6.1
    assert features.choose(A | VERSION_1, A, MADE_UP) == A | VERSION_1


def test_choose_of_a_legacy_device_takes_32_bits() -> None:
    # virtio 1.4, 2.2.3
    assert features.choose(A | HIGH | ANY_LAYOUT, A | HIGH | ANY_LAYOUT, MADE_UP) == A | ANY_LAYOUT


@given(offered=sets, wanted=sets)
def test_choose_is_always_good_for_the_device_and_never_shows_bit_30(offered: int, wanted: int) -> None:
    # virtio 1.4, 2.2.1
    chosen = features.choose(offered, wanted, MADE_UP)
    features.check_accepted(offered, chosen, MADE_UP)
    assert not chosen & (SOCKET_ONLY | features.PCI_ONLY)
    assert not features.known(MADE_UP) & (SOCKET_ONLY | features.PCI_ONLY)
