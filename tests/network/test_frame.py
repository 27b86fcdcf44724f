"""Frames as values."""

from __future__ import annotations

import pytest

from powervio.network.port import GSO_TCPV4, Frame

pytestmark = pytest.mark.dual


def test_frames_of_the_same_content_are_equal() -> None:
    frame = Frame(b"x" * 60, (14, 6), gso=GSO_TCPV4, gso_size=1000, header_bytes=54)
    same = Frame(memoryview(b"x" * 60), (14, 6), gso=GSO_TCPV4, gso_size=1000, header_bytes=54)
    assert frame == same
    assert hash(frame) == hash(same)
    assert frame != Frame(b"x" * 60, (14, 6))
    assert Frame(b"x", None, True) != Frame(b"x")
    assert frame != "x"


def test_frame_is_shown_with_its_bytes() -> None:
    frame = Frame(memoryview(b"ab"), (0, 0), gso=1, gso_size=2, header_bytes=3)
    assert repr(frame) == "Frame(b'ab', (0, 0), False, gso=1, gso_size=2, header_bytes=3)"
    assert Frame(b"ab", None, True).valid is True
