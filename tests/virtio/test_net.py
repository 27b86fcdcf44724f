"""The network device's tables (virtio 1.4, 5.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.virtio import features, net
from powervio.virtio.net import NetConfig

EVERYTHING = NetConfig(bytes(range(6)), 0x0102, 0x0304, 0x0506, 0x0708090A, 0x0B, 0x0C, 0x0D0E, 0x0F101112, 0x13141516)
ALL = (1 << 71) - 1


@pytest.mark.parametrize(
    ("byteorder", "golden"),
    [
        ("little", "000102030405 0201 0403 0605 0a090807 0b 0c 0e0d 1211100f 16151413"),
        ("big", "000102030405 0102 0304 0506 0708090a 0b 0c 0d0e 0f101112 13141516"),
    ],
)
def test_config_has_golden_bytes_in_both_orders(byteorder: str, golden: str) -> None:
    data = net.pack_config(EVERYTHING, ALL, byteorder)
    assert data == bytes.fromhex(golden)
    assert net.unpack_config(data, ALL, byteorder) == EVERYTHING


@pytest.mark.parametrize(
    ("offered", "size"), [(0, 6), (net.F_STATUS, 8), (net.F_MTU, 12), (net.F_SPEED_DUPLEX, 17), (net.F_HASH_TUNNEL, 28)]
)
def test_config_ends_with_the_last_field_that_was_offered(offered: int, size: int) -> None:
    assert len(net.pack_config(NetConfig(), offered, "little")) == size


def test_fields_that_were_not_offered_are_not_read() -> None:
    data = net.pack_config(EVERYTHING, ALL, "little")
    assert net.unpack_config(data, net.F_MTU, "little") == NetConfig(mac=bytes(range(6)), mtu=0x0506)


@pytest.mark.parametrize(
    ("bits", "missing"),
    [
        (net.F_HOST_TSO4, "HOST_TSO4 requires CSUM"),
        (net.F_GUEST_ECN, "GUEST_ECN requires GUEST_TSO4 or GUEST_TSO6"),
        (net.F_MQ, "MQ requires CTRL_VQ"),
        (net.F_CTRL_VQ | net.F_HASH_TUNNEL, "HASH_TUNNEL requires HASH_REPORT or RSS"),
        (net.F_CTRL_VQ | net.F_RSS_CONTEXT, "RSS_CONTEXT requires RSS"),
        (net.F_HOST_UDP_TUNNEL_GSO_CSUM, "HOST_UDP_TUNNEL_GSO_CSUM requires HOST_UDP_TUNNEL_GSO"),
    ],
)
def test_features_that_lack_what_they_require_are_found(bits: int, missing: str) -> None:
    # virtio 1.4, 5.1.3.1
    assert missing in features.missing_dependencies(bits, net.DEVICE_ID)


def test_header_has_num_buffers_in_virtio_1_and_with_mrg_rxbuf() -> None:
    # virtio 1.4, 5.1.6, 5.1.6.1
    assert net.header_bytes(features.VERSION_1) == 12
    assert net.header_bytes(net.F_MRG_RXBUF) == 12
    assert net.header_bytes(0) == 10


@given(st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1 and any(mac)))
def test_mac_is_read_as_it_is_written(mac: bytes) -> None:
    assert net.parse_mac(net.format_mac(mac)) == mac
    assert net.parse_mac(mac.hex("-").upper()) == mac


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "six bytes"),
        ("52:54:00:12:34", "six bytes"),
        ("52:54:00:12:34:567", "six bytes"),
        ("52:54:00:12:34:+5", "six bytes"),
        ("52:54:00:12:34:-5", "six bytes"),
        ("52:54:00:12:34:xy", "six bytes"),
        ("01:00:5e:00:00:01", "no address of one device"),
        ("00:00:00:00:00:00", "no address of one device"),
    ],
)
def test_text_that_is_no_mac_of_one_device_is_refused(text: str, why: str) -> None:
    with pytest.raises(LocalError, match=why):
        net.parse_mac(text)
