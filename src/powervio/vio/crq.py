"""One end of a CRQ connection: registration, the initialization handshake as a table, and reliable posting.

Theory of operation. Both ends register their queues and send INITIALIZE (C001); whoever receives one answers with
INITIALIZATION COMPLETE (C002). Neither order nor crossing of the two is fixed by the architecture (papr-vio 3.5), so
the rules are:

1. C001 is answered in every state, after everything of an older connection has ended here (`on_lost` returns only
   then). On an open connection it means that the partner started anew.
2. C002 counts only while a C001 of ours is outstanding, and only if it returns the number that this C001 carried in
   bytes 8-15; otherwise it is ignored. After several quick resets the answers to all of them arrive, and an early one
   says nothing about what the partner still does for the connections that came after it.
3. An end that has a C001 outstanding waits for its C002, also when the partner's C001 crosses it: only the C002 says
   that the partner has drained what belonged to the connection before.
4. FF01, FF02, FF04 and FF06 end the connection. The end stays registered and waits for the partner's C001. Nobody
   answers an event by freeing its own queue, so two ends cannot reset each other for ever.
5. FF06 is such an event, and the CRQ of whoever was suspended is disabled with it. An end cannot tell whether that was
   its own partition, so each calls H_ENABLE_CRQ, which is harmless where it is not needed, by timer until it
   succeeds, and then offers C001. The queue stays registered and goes on at its place.
6. Messages are handed up only while the connection is open; others are counted as strays and dropped.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from enum import Enum

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.papr.crq import (
    EVENT_OVERLAID,
    VALID_EVENT,
    VALID_INIT,
    InitCode,
    TransportEvent,
    format_of,
    header_of,
    init_message,
)
from powervio.papr.nodes import VdeviceNode
from powervio.papr.vioctl import Vioctl
from powervio.vio.dispatcher import Timer
from powervio.vio.dma import DmaSpace
from powervio.vio.inbox import Inbox
from powervio.vio.kernel import PartitionKernel
from powervio.vio.outbox import RETRY_LAST, Outbox

_log = logging.getLogger(__name__)

_FREE_ATTEMPTS = 100
_ANSWER_LIMIT = 10.0
"""Seconds to wait for C002."""
_ENABLE_LIMIT = 60.0
"""Seconds of H_ENABLE_CRQ being busy after which the queue is freed and registered anew instead."""
_ENABLE_PAUSE = 0.1
"""Seconds before H_ENABLE_CRQ is called again, where the hypervisor does not say how long."""


class CrqState(Enum):
    """Where one end of a connection stands."""

    CLOSED = "closed"
    """Not registered."""
    WAITING = "waiting"
    """Registered; the partner is not there, or has not initialized yet."""
    INITIALIZING = "initializing"
    """Our C001 was delivered and not answered yet."""
    OPEN = "open"


class Input(Enum):
    """What can happen to a connection."""

    SENT = "C001 delivered"
    INITIALIZE = "C001 received"
    COMPLETE = "C002 received"
    GONE = "partner gone"


class Action(Enum):
    """What an end does on a transition, in the order of the table's entry."""

    LOST = "lost"
    ANSWER = "answer"
    OPENED = "opened"


TRANSITIONS: dict[tuple[CrqState, Input], tuple[CrqState, tuple[Action, ...]]] = {
    (CrqState.WAITING, Input.SENT): (CrqState.INITIALIZING, ()),
    (CrqState.WAITING, Input.INITIALIZE): (CrqState.OPEN, (Action.ANSWER, Action.OPENED)),
    (CrqState.WAITING, Input.COMPLETE): (CrqState.WAITING, ()),
    (CrqState.WAITING, Input.GONE): (CrqState.WAITING, ()),
    (CrqState.INITIALIZING, Input.INITIALIZE): (CrqState.INITIALIZING, (Action.ANSWER,)),
    (CrqState.INITIALIZING, Input.COMPLETE): (CrqState.OPEN, (Action.OPENED,)),
    (CrqState.INITIALIZING, Input.GONE): (CrqState.WAITING, ()),
    (CrqState.OPEN, Input.INITIALIZE): (CrqState.OPEN, (Action.LOST, Action.ANSWER, Action.OPENED)),
    (CrqState.OPEN, Input.COMPLETE): (CrqState.OPEN, ()),
    (CrqState.OPEN, Input.GONE): (CrqState.WAITING, (Action.LOST,)),
}

_GONE = frozenset(
    (
        TransportEvent.PARTNER_FAILED,
        TransportEvent.PARTNER_DEREGISTERED,
        TransportEvent.PARTNER_TERMINATED,
        TransportEvent.PARTNER_SUSPENDED,
    )
)
_SUSPENSION = frozenset((TransportEvent.PREPARE_FOR_SUSPEND, TransportEvent.CLIENT_RESUMED))


def _busy_pause(code: int) -> float | None:
    """Seconds to wait before a call that gave this code is made again; None if it did not say that it is busy."""
    if code in (ReturnCode.H_BUSY, ReturnCode.H_IN_PROGRESS):
        return _ENABLE_PAUSE
    if ReturnCode.H_LONG_BUSY_ORDER_1_MSEC <= code <= ReturnCode.H_LONG_BUSY_ORDER_100_SEC:
        order = code - ReturnCode.H_LONG_BUSY_ORDER_1_MSEC
        return min(1.0, 0.001 * 10.0**order)
    return None


class CrqEnd:
    """One end of one connection, in its partition's thread."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        dma: DmaSpace,
        *,
        on_message: Callable[[int, int], None],
        on_open: Callable[[], None],
        on_lost: Callable[[], None],
        on_gone: Callable[[], None] | None = None,
        on_drained: Callable[[], None] | None = None,
        on_event: Callable[[TransportEvent], None] | None = None,
        prepare_msec: int = 0,
        length: int = PAGE_SIZE,
    ) -> None:
        """`on_message(high, low)` gets each message; `on_drained` is called after a batch of them was handed up.

        `on_gone` is called when the partner left, in every state, and by `register` when it is not there. `on_lost`
        returns only when nothing of the old connection is under way any more. `on_event` is told of PREPARE_FOR_SUSPEND
        and CLIENT_RESUMED, which a server gets that asks for them with `prepare_msec`: the milliseconds that it may
        take to answer the first. `length` is the receive queue's size in bytes, a multiple of 4096.
        """
        self.state = CrqState.CLOSED
        self.suspended = False
        """Whether the partner left by FF06: it is only suspended, and what it has in hand is not over."""
        self._kernel = kernel
        self._port = kernel.port
        self._node = node
        self._unit_address = node.unit_address
        self._interrupt = node.interrupt
        self._dma = dma
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_gone = on_gone
        self._on_event = on_event
        self._prepare_msec = prepare_msec
        self._memory = dma.allocate(length)
        self.inbox = Inbox(
            self._memory.view, f"CRQ {self._unit_address:#x}", on_message, self._other, self._drain_soon, on_drained
        )
        """Where messages come in; see `drain`."""
        self.outbox = Outbox(kernel, self._unit_address, lambda: self.gone, self._reset_soon)
        """Where messages go out; see `post` and `signal`."""
        # what is called for every batch of messages, without a step between
        self.drain: Callable[[], None] = self.inbox.drain
        """Take everything out of the queue and hand it up."""
        self.post: Callable[[int, int], None] = self.outbox.post
        """See `Outbox.post`."""
        self.forget_signals: Callable[[], None] = self.outbox.forget_signals
        """See `Outbox.forget_signals`."""
        self._offering: Timer | None = None
        self._enabling: Timer | None = None
        # so that an answer to an earlier life of this partition is not taken for one to this
        self._number = secrets.randbits(62)
        self._partner_number = 0
        self._drain_again = False

    # -- registration

    def register(self) -> None:
        """Register the queue and offer a connection. Raises `HcallError` when the platform refuses.

        Nothing happens when the adapter was unplugged.
        """
        self.inbox.slots.reset()
        self._kernel.request_interrupt(self._interrupt, self.drain)
        code = self._reg_crq()
        if code == ReturnCode.H_RESOURCE:
            # an earlier life of this partition left the queue registered (a crash kernel does), and filled by now
            self._free_crq()
            self.inbox.slots.reset()
            code = self._reg_crq()
        if code not in (ReturnCode.H_SUCCESS, ReturnCode.H_CLOSED):
            self._kernel.free_interrupt(self._interrupt)
            if self.gone:
                return  # the owner learns of it by the device tree
            raise HcallError(Hcall.H_REG_CRQ, code)
        self._become(CrqState.WAITING)
        self.suspended = False
        if code == ReturnCode.H_CLOSED and self._on_gone is not None:
            self._on_gone()  # whoever left while this end was closed sent it no event
        if self._prepare_msec:
            # has to be said again after each H_REG_CRQ; a platform that cannot suspend answers H_NOT_FOUND
            self._port.vioctl(self._unit_address, Vioctl.ENABLE_PREPARE_FOR_SUSPEND, self._prepare_msec)
        self._port.vio_signal(self._unit_address, 1)
        self._offer()
        self.drain()  # enabling the interrupt raises none for what came before (papr-vio 3.4)

    def _offer(self) -> None:
        """Send C001; a partner whose queue is still full of an older connection gets it as soon as there is room."""
        self._offering = None
        if self.state is not CrqState.WAITING:
            return
        self._number = (self._number + 1) & 0xFFFF_FFFF_FFFF_FFFF
        code = self._port.send_crq(self._unit_address, init_message(InitCode.INITIALIZE), self._number)
        if code == ReturnCode.H_SUCCESS:
            self._step(Input.SENT)
        elif code == ReturnCode.H_DROPPED:
            self._offering = self._kernel.call_later(RETRY_LAST, self._offer)

    @property
    def gone(self) -> bool:
        """Whether the adapter was unplugged: its node is not in the device tree any more. It never comes back; another
        one in the same slot has other LIOBNs, so another node."""
        found = self._port.nodes.get(self._unit_address)
        return found is not self._node and found != self._node

    def abandon(self) -> None:
        """The adapter was unplugged: everything of the connection is over, without a call that would name it."""
        self.outbox.forget()
        self._cancel_timers()
        self._become(CrqState.CLOSED)
        self._kernel.free_interrupt(self._interrupt)

    def _suspended(self) -> None:
        if self._enabling is None:
            until = self._kernel.clock() + _ENABLE_LIMIT
            self._enabling = self._kernel.call_later(0.0, lambda: self._enable(until))

    def _enable(self, until: float) -> None:
        """H_ENABLE_CRQ after a suspension, again by timer while the platform is busy with it."""
        self._enabling = None
        code = self._port.enable_crq(self._unit_address)
        if code == ReturnCode.H_SUCCESS:
            self._offer_when_drained()
            return
        pause = _busy_pause(code)
        if pause is None or self._kernel.clock() + pause > until:
            _log.warning("CRQ %#x: H_ENABLE_CRQ returned %d; registered anew instead", self._unit_address, code)
            self._reset_soon()
            return
        self._enabling = self._kernel.call_later(pause, lambda: self._enable(until))

    def _offer_when_drained(self) -> None:
        """A partner that began again while the CRQ was disabled could not send its C001: its FF02 is in our queue, and
        would end what a C001 that was sent before it is taken out had begun. Later ones are followed by a C001."""
        self.drain()
        if self.waiting:
            self._kernel.call_soon(self._offer_when_drained)
        else:
            self._offer()

    def close(self) -> None:
        """Free the queue; the partner learns of it by an event. Everything of the connection has ended on return."""
        if self.state is CrqState.CLOSED:
            return
        was_open = self.state is CrqState.OPEN
        self.outbox.forget()
        self._cancel_timers()
        self._free_crq()
        self._become(CrqState.CLOSED)
        self._kernel.free_interrupt(self._interrupt)
        if was_open:
            self._on_lost()

    def _cancel_timers(self) -> None:
        for timer in (self._offering, self._enabling):
            if timer is not None:
                timer.cancel()
        self._offering = self._enabling = None

    def reset(self) -> None:
        """Close the connection from this side and offer a new one."""
        self.close()
        self.register()

    def release(self) -> None:
        """Close and give back the queue's memory; the end is not used afterwards."""
        self.close()
        self._dma.release(self._memory)

    def _reg_crq(self) -> int:
        return self._port.reg_crq(self._unit_address, self._memory.ioba, len(self._memory.view))

    def _free_crq(self) -> None:
        for _ in range(_FREE_ATTEMPTS):
            code = self._port.free_crq(self._unit_address)
            if code != ReturnCode.H_BUSY and not (
                ReturnCode.H_LONG_BUSY_ORDER_1_MSEC <= code <= ReturnCode.H_LONG_BUSY_ORDER_100_SEC
            ):
                break
            self._kernel.wait(0.01)
        if code and not self.gone:
            raise HcallError(Hcall.H_FREE_CRQ, code)

    def _unanswered(self, number: int) -> None:
        """Nobody answered our C001 in time: begin again, for the partner may have lost it."""
        if self.state is CrqState.INITIALIZING and number == self._number:
            _log.warning("CRQ %#x: no answer to INITIALIZE within %.0f s", self._unit_address, _ANSWER_LIMIT)
            self.reset()

    # -- receiving

    def _drain_soon(self) -> None:
        if not self._drain_again:
            self._drain_again = True
            self._kernel.call_soon(self._drain_rest)

    def _drain_rest(self) -> None:
        self._drain_again = False
        self.drain()

    def _other(self, high: int, low: int) -> None:
        """Take an element that is no message."""
        header = header_of(high)
        if header == VALID_INIT:
            self._init(format_of(high), low)
        elif header == VALID_EVENT and format_of(high) in _GONE:
            self.suspended = format_of(high) == TransportEvent.PARTNER_SUSPENDED
            self._step(Input.GONE)
            if self.suspended:
                self._suspended()
        elif header == VALID_EVENT and format_of(high) in _SUSPENSION and self._on_event is not None:
            self._on_event(TransportEvent(format_of(high)))
            if (high >> 32) & EVENT_OVERLAID:
                # a message was lost and the connection goes on: nobody can say what is missing
                self._reset_soon()
        else:
            self.inbox.strays += 1

    @property
    def strays(self) -> int:
        """Elements dropped: messages outside an open connection, unknown headers and events."""
        return self.inbox.strays

    def _init(self, code: int, number: int) -> None:
        if code == InitCode.INITIALIZE:
            self._partner_number = number
            self._step(Input.INITIALIZE)
        elif code == InitCode.INITIALIZATION_COMPLETE and number == self._number:
            self._step(Input.COMPLETE)
        else:
            self.inbox.strays += 1

    def _become(self, state: CrqState) -> None:
        self.state = state
        self.inbox.is_closed = state is CrqState.CLOSED
        self.inbox.is_open = state is CrqState.OPEN

    def _step(self, happened: Input) -> None:
        transition = TRANSITIONS.get((self.state, happened))
        if transition is None:
            raise LocalError(f"CRQ {self._unit_address:#x}: {happened.value} cannot happen while {self.state.value}")
        state, actions = transition
        self._become(state)
        if happened is Input.SENT:
            number = self._number
            self._kernel.call_later(_ANSWER_LIMIT, lambda: self._unanswered(number))
        for action in actions:
            if action is Action.LOST:
                self.outbox.forget()
                self._on_lost()
            elif action is Action.ANSWER:
                self.post(init_message(InitCode.INITIALIZATION_COMPLETE), self._partner_number)
            else:
                self._on_open()
        if happened is Input.GONE and self._on_gone is not None:
            self._on_gone()

    @property
    def waiting(self) -> bool:
        """Whether there are elements that were not taken yet."""
        return self.inbox.waiting

    # -- sending

    @property
    def backlogged(self) -> bool:
        """Whether messages are kept back because the partner's queue is full."""
        return self.outbox.backlogged

    def _reset_soon(self) -> None:
        number = self._number
        self._kernel.call_soon(lambda: self._cut_off(number))

    def _cut_off(self, number: int) -> None:
        if self.state is not CrqState.CLOSED and number == self._number:
            self.reset()
