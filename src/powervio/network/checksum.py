"""The Internet checksum (RFC 1071), as far as frames with a partial one need it."""

from __future__ import annotations

from powervio.network.frame import Frame


def checksum(data: bytes | memoryview) -> int:
    """The complement of the ones' complement sum of big-endian 16-bit words; an odd last byte is a high one."""
    # 2^16 is 1 modulo 2^16-1, so the number's remainder is the sum of its words with the carries added again
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    total = number % 0xFFFF
    if not total and number:
        total = 0xFFFF
    return ~total & 0xFFFF


def finished(frame: Frame) -> Frame:
    """The frame with its checksum finished; not one that is to be segmented (`segment.fitted`).

    The place of a partial one lies within the frame.
    """
    if frame.partial is None:
        return frame
    start, offset = frame.partial
    data = bytearray(frame.data)
    place = start + offset
    # 0 says "none" in UDP, and is the same number
    data[place : place + 2] = (checksum(memoryview(data)[start:]) or 0xFFFF).to_bytes(2, "big")
    return Frame(bytes(data))
