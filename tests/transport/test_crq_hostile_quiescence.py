"""What a hostile server can answer to QUEUE_RESET, SUSPEND and RESUME (P5.11, P5.12): the driver gets each request back
once, and nothing is leaked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.transport.test_crq_hostile_server import Server, echo

from powervio.errors import PowervioError
from powervio.testing.echo import EchoDriver
from powervio.transport.crq.protocol import REPLY, Message, Status, encode
from powervio.virtio.status import NEEDS_RESET

ERRORS = [status for status in Status if status is not Status.OK]


class Echo(Server):
    """Answers by hand; serves a request only when a test says so."""

    def __init__(self) -> None:
        self.echo = EchoDriver()
        super().__init__(self.echo, echo(), bytes(8))
        self.outcome: list[PowervioError | None] = []

    def send_and_reset(self) -> None:
        self.echo.send(b"one", b"two")
        self.pair.settle()
        self.echo.reset_queue()
        self.pair.settle()

    def tell(self, *queues: int) -> None:
        for queue in queues:
            self.crq.post(*encode(Message.USED, self.session, queue=queue, index=1))

    def tell_use(self, head: int) -> None:
        self.use(head)
        self.tell(0)

    def suspend(self) -> None:
        self.client.suspend(self.outcome.append)
        self.pair.settle()


@pytest.fixture
def server() -> Iterator[Echo]:
    made = Echo()
    made.start()
    yield made
    made.pair.close()


@pytest.mark.parametrize("kind", [Message.QUEUE_RESET, Message.FIND_VQS])
@pytest.mark.parametrize("status", ERRORS)
def test_reset_that_is_refused_ends_the_session_and_each_request_is_submitted_again(
    server: Echo, kind: Message, status: Status
) -> None:
    server.status[kind] = status
    server.send_and_reset()
    assert f"{kind.name} with {status.name}" in server.client.failure
    assert (server.state, server.echo.stops, server.echo.resets, server.echo.unfinished) == ("waiting", 1, 0, 2)
    server.status.clear()
    server.pair.advance(1.0)
    assert (server.state, server.client.sessions, server.echo.unfinished) == ("running", 2, 2)


def test_resets_that_are_refused_leak_nothing(server: Echo) -> None:
    server.echo.send(b"one", b"two")
    free = []
    for kind in (Message.QUEUE_RESET, Message.FIND_VQS, Message.QUEUE_RESET, Message.FIND_VQS):
        server.pair.settle()
        server.status[kind] = Status.BAD_QUEUE
        server.echo.reset_queue()
        server.pair.settle()
        server.status.clear()
        server.pair.advance(10.0)
        free.append(server.free)
    assert server.client.sessions == 5
    assert free == [free[0]] * 4


@pytest.mark.parametrize("kind", [Message.QUEUE_RESET, Message.FIND_VQS, Message.SUSPEND, Message.RESUME])
def test_message_that_is_not_answered_costs_the_session_after_10_s(server: Echo, kind: Message) -> None:
    server.silent = {kind}
    if kind in (Message.SUSPEND, Message.RESUME):
        server.suspend()
        server.client.resume()
    else:
        server.send_and_reset()
    server.pair.advance(9.5)
    assert server.echo.stops == 0
    server.silent = set()
    server.pair.advance(2.0)
    assert f"did not answer {kind.name} within 10 s" in server.client.failure
    assert (server.state, server.client.sessions, server.echo.stops) == ("running", 2, 1)


@pytest.mark.parametrize("kind", [Message.QUEUE_RESET, Message.FIND_VQS, Message.SUSPEND, Message.RESUME])
@pytest.mark.parametrize("status", [Status.OK, Status.BAD_STATE, Status.DEVICE_ERROR])
def test_reply_that_nobody_waits_for_is_dropped(server: Echo, kind: Message, status: Status) -> None:
    server.echo.send(b"one")
    server.crq.post(*encode(kind | REPLY, server.session, status=status))
    server.pair.settle()
    assert (server.state, server.client.rejected, server.echo.unfinished) == ("running", 1, 1)


@pytest.mark.parametrize("kind", [Message.QUEUE_RESET, Message.SUSPEND])
def test_reply_that_comes_twice_counts_once(server: Echo, kind: Message) -> None:
    server.after[kind] = lambda: server.crq.post(*encode(kind | REPLY, server.session))
    if kind is Message.SUSPEND:
        server.suspend()
        assert (server.state, server.outcome) == ("suspended", [None])
    else:
        server.send_and_reset()
        assert (server.state, server.echo.resets) == ("running", 1)
    assert server.client.rejected == 1


@pytest.mark.parametrize("kind", [Message.QUEUE_RESET, Message.SUSPEND])
def test_reply_of_the_session_before_does_nothing_in_the_next(server: Echo, kind: Message) -> None:
    server.silent = {kind}
    if kind is Message.SUSPEND:
        server.suspend()
    else:
        server.send_and_reset()
    old = server.session
    server.client.reset()
    server.pair.settle()
    rejected = server.client.rejected
    server.crq.post(*encode(kind | REPLY, old))
    server.pair.settle()
    assert server.client.rejected == rejected + 1
    assert (server.outcome, server.echo.resets) == ([], 0)


def test_used_for_the_queue_in_reset_and_for_others_has_no_effect(server: Echo) -> None:
    """A USED that is late, or for a queue that does not exist, finds the new ring empty."""
    server.after[Message.QUEUE_RESET] = lambda: server.tell(0, 1, 999)
    server.send_and_reset()
    assert (server.state, server.echo.answers, server.echo.unfinished) == ("running", [], 2)
    assert server.client.rejected == 2
    server.tell_use(0)
    server.pair.settle()
    assert server.echo.unfinished == 1
    assert server.state == "running"


def test_old_ring_is_out_of_reach_after_the_reset(server: Echo) -> None:
    """P1.5: the old ring and the buffers in it are unmapped before the driver gets them back."""
    server.echo.send(b"one")
    server.pair.settle()
    old = server.rings[0]
    table = server._window.read(old.descriptors, 16)
    session = server.client._session
    assert session is not None
    back: list[list[object]] = []
    session.reset_queue(session.queues[0], back.append)
    server.pair.settle()
    assert [len(tokens) for tokens in back] == [1]
    assert server.rings[0].descriptors != old.descriptors
    for address in (int.from_bytes(table[:8], "little"), old.descriptors, old.used):
        assert not _reachable(server, address)


def _reachable(server: Echo, address: int) -> bool:
    try:
        server._window.read(address, 4)
    except PowervioError:
        return False
    return True


def test_completion_of_a_request_that_was_taken_back_breaks_the_session_not_the_driver(server: Echo) -> None:
    """The device uses a head of the new ring that was never made available there."""
    server.echo.send(b"one")
    server.pair.settle()
    server.after[Message.FIND_VQS] = lambda: server.tell_use(9)
    server.echo.reset_queue()
    server.pair.settle()
    server.after.clear()
    assert "broke the ring" in server.client.failure
    server.pair.advance(1.0)
    assert (server.state, server.client.sessions, server.echo.unfinished) == ("running", 2, 1)


@pytest.mark.parametrize("status", ERRORS)
def test_suspend_that_is_refused_is_told_and_the_session_goes_on(server: Echo, status: Status) -> None:
    server.status[Message.SUSPEND] = status
    server.client.suspend(server.outcome.append)
    server.echo.send(b"held back meanwhile")
    kicks = server.heard.count(Message.KICK)
    server.pair.settle()
    assert len(server.outcome) == 1
    assert status.name in str(server.outcome[0])
    assert (server.state, server.client.sessions, server.echo.stops) == ("running", 1, 0)
    assert server.heard.count(Message.KICK) == kicks + 1
    server.status.clear()
    server.suspend()
    assert (server.state, server.outcome[1:]) == ("suspended", [None])


@pytest.mark.parametrize("status", ERRORS)
def test_resume_that_is_refused_ends_the_session_and_the_next_one_runs(server: Echo, status: Status) -> None:
    server.suspend()
    server.echo.send(b"waits")
    server.status[Message.RESUME] = status
    server.client.resume()
    server.pair.advance(1.0)
    assert f"RESUME with {status.name}" in server.client.failure
    assert (server.state, server.client.sessions, server.echo.unfinished) == ("running", 2, 1)
    assert server.heard[-1] == Message.KICK


@pytest.mark.parametrize("first", [Message.QUEUE_RESET, Message.FIND_VQS, Message.SUSPEND])
def test_needs_reset_in_between_resets_the_device_once(server: Echo, first: Message) -> None:
    """P5.14: what was under way is over with the device's life; its late reply is ignored."""
    server.silent = {first}
    hear = server.crq.inbox.on_message

    def needs_reset(high: int, low: int) -> None:
        hear(high, low)
        if (high >> 48) & 0xFF == first and server.client.sessions == 1 and first in server.silent:
            server.silent = set()
            server.config_changed(NEEDS_RESET)
            server.crq.post(*encode(first | REPLY, server.session, status=Status.BAD_STATE))

    server.crq.inbox.on_message = needs_reset
    if first is Message.SUSPEND:
        server.echo.send(b"one", b"two")
        server.suspend()
    else:
        server.send_and_reset()
    server.pair.advance(1.0)
    assert (server.client.sessions, server.echo.stops, server.echo.unfinished) == (2, 1, 2)
    assert server.state == ("suspended" if first is Message.SUSPEND else "running")
    assert server.heard.count(Message.RESET) == 1


def test_completion_that_is_told_by_no_message_is_found_at_the_reply(server: Echo) -> None:
    """P5.16: at the reply to QUEUE_RESET or SUSPEND the client looks at the used rings itself."""
    server.echo.send(b"one", b"two")
    server.pair.settle()
    server.silent = {Message.QUEUE_RESET}
    server.echo.reset_queue()
    server.pair.settle()
    server.use(0)
    assert server.echo.answers == []
    server.crq.post(*encode(Message.QUEUE_RESET | REPLY, server.session))
    server.pair.settle()
    assert [message for message, _ in server.echo.answers] == [b"one"]
    assert (server.echo.resets, server.echo.unfinished) == (1, 1)
    server.silent = {Message.SUSPEND}
    server.suspend()
    server.use(0)
    server.crq.post(*encode(Message.SUSPEND | REPLY, server.session))
    server.pair.settle()
    assert (server.state, server.echo.unfinished) == ("suspended", 0)
