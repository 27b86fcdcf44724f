"""What a frame costs over virtio-net and over the logical LAN, exactly. Whoever changes a number here says in the
commit why it changed."""

from __future__ import annotations

import pytest

from powervio.bench.net_cost import LARGE_PAYLOAD, FrameCost, count_frame_costs, frame_of

WIRE = frame_of(1460)
LARGE = frame_of(LARGE_PAYLOAD, large=True)

# The hypervisor reads the frame and writes it into a buffer in the sender's call; the receiver is interrupted, and
# gives eight buffers back at a time.
NATIVE = {
    "H_ADD_LOGICAL_LAN_BUFFERS": 0.125,
    "H_EOI": 1.0,
    "H_SEND_LOGICAL_LAN": 1.0,
    "H_XIRR": 1.0,
    "total": 3.125,
}
NATIVE_32 = {**NATIVE, "H_EOI": 0.0312, "H_XIRR": 0.0312, "total": 1.1875}
NATIVE_16 = {**NATIVE, "H_EOI": 0.0625, "H_XIRR": 0.0625, "total": 1.25}
# Of the sender's ring: descriptors with the available ring, the frame, used element and index; of the receiver's: the
# frame, used element and index. Three messages with an interrupt each: there is a frame, it was sent, there is one for
# you; and one for every 16 frames that there are buffers again.
SPLIT = {"H_COPY_RDMA": 7.0625, "H_EOI": 3.0625, "H_SEND_SUB_CRQ": 3.0625, "H_XIRR": 3.0625, "total": 16.25}
# A used descriptor needs no index behind it.
PACKED = {**SPLIT, "H_COPY_RDMA": 3.0625, "H_WRITE_RDMA": 2.0, "total": 14.25}
# Together they share all but the copies into the receiver's buffers.
SPLIT_32 = {"H_COPY_RDMA": 1.2188, "H_EOI": 0.125, "H_SEND_SUB_CRQ": 0.125, "H_XIRR": 0.125, "total": 1.5938}
PACKED_32 = {**SPLIT_32, "H_COPY_RDMA": 1.1562, "H_WRITE_RDMA": 0.0625}
# Of a large frame the headers come to the VIO server and go on from there, and the rest goes from client to client.
LARGE_SPLIT = {**SPLIT, "H_COPY_RDMA": 8.0625, "total": 17.25}
SPLIT_16 = {"H_COPY_RDMA": 3.5, "H_EOI": 0.25, "H_SEND_SUB_CRQ": 0.3125, "H_XIRR": 0.25, "total": 4.3125}


@pytest.mark.dual
@pytest.mark.parametrize(("together", "calls"), [(1, NATIVE), (32, NATIVE_32)], ids=["alone", "together"])
def test_native_frame_of_1500_bytes(together: int, calls: dict[str, float]) -> None:
    assert count_frame_costs(WIRE, together, native=True) == FrameCost(calls, 2.0, 2 * 1514.0)


@pytest.mark.dual
@pytest.mark.parametrize(("together", "calls"), [(1, NATIVE), (16, NATIVE_16)], ids=["alone", "together"])
def test_native_large_frame(together: int, calls: dict[str, float]) -> None:
    assert count_frame_costs(LARGE, together, native=True) == FrameCost(calls, 2.0, 2 * 64_054.0)


@pytest.mark.parametrize(
    ("together", "packed", "expected"),
    [
        (1, False, FrameCost(SPLIT, 7.0625, 5526.4)),
        (1, True, FrameCost(PACKED, 5.0625, 3100.0)),
        (32, False, FrameCost(SPLIT_32, 1.2188, 3222.2)),
        (32, True, FrameCost(PACKED_32, 1.2188, 3125.2)),
    ],
)
def test_virtio_frame_of_1500_bytes(together: int, packed: bool, expected: FrameCost) -> None:
    assert count_frame_costs(WIRE, together, native=False, packed=packed) == expected


@pytest.mark.parametrize(
    ("together", "expected"),
    [(1, FrameCost(LARGE_SPLIT, 8.0625, 66_808.4)), (16, FrameCost(SPLIT_16, 3.5, 64_639.1))],
)
def test_virtio_large_frame(together: int, expected: FrameCost) -> None:
    assert count_frame_costs(LARGE, together, native=False) == expected
