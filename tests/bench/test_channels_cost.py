"""What Sub-CRQs cost and give, exactly. Whoever changes a number here says in the commit why it changed.

A request is an echo of 64 bytes: two buffers that are mapped and unmapped together, one read and one write by the
server. Depth 32 is 32
requests in flight over all queues, made available queue by queue with one kick each.
"""

from __future__ import annotations

import pytest

from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair

WAVES = 16
NOTIFICATION = ("H_SEND_CRQ", "H_SEND_SUB_CRQ", "H_XIRR", "H_EOI")

CRQ_ALONE = ({"H_SEND_CRQ": 2.0, "H_XIRR": 2.0, "H_EOI": 2.0}, 13.0)
SUB_ALONE = ({"H_SEND_SUB_CRQ": 2.0, "H_XIRR": 2.0, "H_EOI": 2.0}, 13.0)
# (queues, channels, depth): calls for notification per request, all calls per request. A notification costs the same
# either way. Four queues that are busy together share one interrupt on the CRQ and have one each on Sub-CRQs, which is
# what it is for: the CRQ carries nothing but configuration, and no queue's notifications wait behind another's.
EXPECTED = {
    (1, False, 1): CRQ_ALONE,
    (4, False, 1): CRQ_ALONE,
    (1, True, 1): SUB_ALONE,
    (4, True, 1): SUB_ALONE,
    (1, False, 32): ({"H_SEND_CRQ": 0.0625, "H_XIRR": 0.0625, "H_EOI": 0.0625}, 2.34375),
    (1, True, 32): ({"H_SEND_SUB_CRQ": 0.0625, "H_XIRR": 0.0625, "H_EOI": 0.0625}, 2.34375),
    (4, False, 32): ({"H_SEND_CRQ": 0.25, "H_XIRR": 0.0625, "H_EOI": 0.0625}, 3.0),
    (4, True, 32): ({"H_SEND_SUB_CRQ": 0.25, "H_XIRR": 0.25, "H_EOI": 0.25}, 3.375),
}


def cost(queues: int, channels: bool, depth: int) -> tuple[dict[str, float], float]:
    driver = EchoDriver(queue_count=queues)
    pair = PartitionPair(EchoDevice(queue_count=queues), driver, channels=channels).start()
    assert pair.client.channels == (queues if channels else 0)

    def wave(number: int) -> None:
        if depth == 1:
            driver.send(bytes(64), queue=number % queues)
        else:
            for queue in range(queues):
                driver.send(*[bytes(64)] * (depth // queues), queue=queue)
        pair.settle()

    wave(0)
    ends = (pair.client_adapter.ledger, pair.server_adapter.ledger)
    before = [ledger.snapshot() for ledger in ends]
    for number in range(WAVES):
        wave(number)
    spent = (ends[0].snapshot() - before[0]) + (ends[1].snapshot() - before[1])
    assert len(driver.answers) == (WAVES + 1) * depth
    pair.close()
    calls = spent["hcalls"]
    each = {name: calls[name] / (WAVES * depth) for name in NOTIFICATION if name in calls}
    return each, sum(calls.values()) / (WAVES * depth)


@pytest.mark.parametrize("depth", [1, 32])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("queues", [1, 4])
def test_cost_of_a_request(queues: int, channels: bool, depth: int) -> None:
    assert cost(queues, channels, depth) == EXPECTED[queues, channels, depth]


def test_cost_of_a_session_with_4_channels() -> None:
    """Each end maps, registers and enables a Sub-CRQ for each queue; the rest is the exchange of cookies."""
    calls = []
    for channels in (False, True):
        pair = PartitionPair(EchoDevice(queue_count=4), EchoDriver(queue_count=4), channels=channels).start()
        ends = (pair.client_adapter.ledger.snapshot(), pair.server_adapter.ledger.snapshot())
        calls.append(dict((ends[0] + ends[1])["hcalls"]))
        pair.close()
    names = sorted({name for name in calls[1] if calls[1][name] != calls[0].get(name, 0)})
    more = {name: calls[1][name] - calls[0].get(name, 0) for name in names}
    assert more == {
        "H_PUT_TCE": 8,
        "H_REG_SUB_CRQ": 8,
        "H_VIOCTL": 8,
        "H_COPY_RDMA": 2,
        "H_SEND_CRQ": 2,
        "H_XIRR": 2,
        "H_EOI": 2,
    }
