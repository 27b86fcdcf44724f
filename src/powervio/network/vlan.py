"""802.1Q tags of frames: they are put in, taken out and changed, and what counts from the frame's start moves along."""

from __future__ import annotations

from powervio.network.frame import TAG_BYTES, Frame
from powervio.network.switch_decision import PUSH, STRIP

_AT = 12
"""Where a tag is: behind the addresses."""
_TPID = b"\x81\x00"


def retagged(frame: Frame, change: int, tci: int) -> Frame:
    """The frame after a change of `switch_decision` that is not KEEP, with `tci` (priority, VLAN) in the new tag."""
    data = memoryview(frame.data)
    tag = b"" if change == STRIP else _TPID + tci.to_bytes(2, "big")
    rest = _AT if change == PUSH else _AT + TAG_BYTES
    moved = len(tag) + _AT - rest
    changed = b"".join((data[:_AT], tag, data[rest:]))
    if frame.partial is None:
        return Frame(changed, None, frame.valid)
    start, offset = frame.partial
    header_bytes = frame.header_bytes + moved if frame.header_bytes else 0
    return Frame(changed, (start + moved, offset), frame.valid, frame.gso, frame.gso_size, header_bytes)
