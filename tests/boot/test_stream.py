"""What comes out of a guest's ports, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.boot.stream import Control, Marked, reason_of_end
from powervio.errors import RemoteError

TOKEN = b"abab\xffab"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"abab", b"abab\xff", b"\r\n", b"\0"])).map(b"".join),
    st.lists(st.integers(0, 1000)),
)
def test_all_that_is_before_the_token_comes_out_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    stream = Marked(TOKEN)
    before = (data + TOKEN).find(TOKEN)
    out = b"".join(stream.feed(piece) for piece in pieces(data + TOKEN + b"behind", cuts))
    assert (out, stream.ended) == (data[:before], True)
    assert stream.close() == b""


def test_what_may_be_a_token_is_not_lost_when_the_stream_ends() -> None:
    stream = Marked(TOKEN)
    assert stream.feed(b"xabab") == b"x"
    assert stream.close() == b"abab"
    assert not stream.ended


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_control_port_tells_start_and_status(size: int) -> None:
    control = Control()
    data = b"ready\nstatus 137\n"
    for start in range(0, len(data), size):
        control.feed(data[start : start + size])
    assert (control.ready, control.status, control.disks) == (True, 137, None)
    control.feed(b"disks 2\n")
    assert control.disks == 2


@pytest.mark.parametrize("said", [b"hello\n", b"status -1\n", b"status 1000\n", b"\n", b"x" * 300])
def test_a_guest_that_says_something_else_is_refused(said: bytes) -> None:
    with pytest.raises(RemoteError):
        Control().feed(said)


def test_the_reason_of_a_kernel_s_death_is_found() -> None:
    console = b"[ 1.0] fine\r\n[    3.4] Kernel panic - not syncing: sysrq triggered crash\r\n[ 3.5] CPU: 0\r\n"
    assert reason_of_end(console) == "Kernel panic - not syncing: sysrq triggered crash"
    assert reason_of_end(b"[ 1.0] reboot: Power down\r\n") is None
