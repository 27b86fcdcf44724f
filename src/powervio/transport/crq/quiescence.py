"""QUEUE_RESET, SUSPEND and RESUME at the driver's end: one queue, or the whole device, is made quiet and set going
again (docs/protocol.md, P5.11, P5.12).

Kicks are held back, by not publishing what was added, from the moment of the wish until the device goes on: so nothing
becomes available to a device that is not to look, and nothing that was made available is forgotten. One message is
under way at a time. A session may end at any moment: then resets that were asked for are over, as the driver gets all
its requests back, while the wish to be suspended stays and is carried out in the next session, before any request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from powervio.errors import LocalError, PowervioError, RemoteError
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.driver_queue import CrqDriverQueue
from powervio.transport.crq.handshake import Handshake, Request
from powervio.transport.crq.protocol import Message, Status
from powervio.virtio import features as feature

WhenReset: TypeAlias = Callable[[list[object]], None]
"""Gets the tokens of what was in the queue and not completed."""
WhenSuspended: TypeAlias = Callable[[PowervioError | None], None]
"""Gets None when the device is quiet, or why it will not be."""


class Quiescence:
    """Which queues of a client adapter are quiet, and the messages that make them so."""

    def __init__(
        self,
        handshake: Handshake,
        channels: Channels,
        *,
        request: Request,
        look: Callable[[Iterable[int]], None],
        on_change: Callable[[bool], None],
    ) -> None:
        """`look` completes what the device has used in these queues; `on_change` is told of suspended and resumed."""
        self.suspended = False
        """Whether the device of this session is suspended."""
        self._handshake = handshake
        self._channels = channels
        self._request = request
        self._look = look
        self._on_change = on_change
        self._wanted = False
        self._when_suspended: WhenSuspended | None = None
        self._resets: deque[tuple[CrqDriverQueue, WhenReset]] = deque()
        self._taken_back: list[object] = []
        self._session = False
        self._under_way: Message | None = None

    # -- what is asked for

    def reset_queue(self, queue: CrqDriverQueue, done: WhenReset) -> None:
        """See `DriverTransport.reset_queue`."""
        self._require(feature.RING_RESET, "reset single queues")
        if queue not in self._handshake.queues:
            raise LocalError(f"queue {queue.index} is of another session")
        self._resets.append((queue, done))
        self._next()

    def suspend(self, done: WhenSuspended) -> None:
        """See `VirtioVio.suspend`."""
        if self._wanted:
            raise LocalError("the device is suspended already")
        self._require(feature.SUSPEND, "be suspended")
        self._wanted = True
        self._when_suspended = done
        self._hold()
        self._next()

    def resume(self) -> None:
        """See `VirtioVio.resume`."""
        self._wanted = False
        self._tell(LocalError("the device was resumed before it was suspended"))
        self._hold()
        self._next()

    def abandon(self, reason: str) -> None:
        """There will be no session: nobody waits for a suspended device any more."""
        self._wanted = False
        self._tell(LocalError(reason))

    def _require(self, bit: int, what: str) -> None:
        if not self._session:
            raise LocalError(f"there is no session whose device could {what}")
        if not self._handshake.features & bit:
            raise LocalError(f"the device cannot {what}: the feature was not negotiated")

    # -- sessions

    def begin(self) -> None:
        """A session begins; the driver is to be started after this."""
        self._session = True
        self._hold()

    def proceed(self) -> None:
        """The driver is started: carry out what was wished for in an older session."""
        self._next()

    def end(self) -> None:
        """The session ends, or its device is being reset."""
        self._session = self.suspended = False
        self._under_way = None
        self._resets.clear()
        self._taken_back = []

    # -- one thing at a time

    def _next(self) -> None:
        if not self._session or self._under_way is not None:
            return
        if self._wanted != self.suspended:
            if not self._handshake.features & feature.SUSPEND:
                # another server than the one that was asked: held kicks are all the quiet that there is
                self._suspension_changed(self._wanted)
            else:
                self._send(Message.SUSPEND if self._wanted else Message.RESUME)
        elif self._resets and not self.suspended:
            self._send(Message.QUEUE_RESET, queue=self._resets[0][0].index)

    def _send(self, kind: Message, **values: int) -> None:
        self._under_way = kind
        self._hold()
        self._request(kind, **values)

    def _hold(self) -> None:
        """Hold back the kicks of queues that are to be quiet, and make up for those of the others."""
        if not self._session:
            return
        everything = self._wanted or self.suspended or self._under_way in (Message.SUSPEND, Message.RESUME)
        in_reset = self._resets[0][0] if self._under_way in (Message.QUEUE_RESET, Message.FIND_VQS) else None
        for queue in self._handshake.queues:
            was_held, queue.held = queue.held, everything or queue is in_reset
            if was_held and not queue.held:
                queue.kick()

    def answered(self, kind: Message) -> None:
        """The server replied OK. A reply that comes when the session is over, or being reset, changes nothing."""
        if kind is not self._under_way:
            return
        if kind is Message.QUEUE_RESET:
            self._was_reset()
        elif kind is Message.FIND_VQS:
            self._found_again()
        else:
            if kind is Message.SUSPEND:
                # what was told over Sub-CRQs may come later than the reply (P5.16)
                self._look(range(len(self._handshake.queues)))
                if not self._session:
                    return  # a completion ended it
            self._under_way = None
            self._suspension_changed(kind is Message.SUSPEND)

    def refused(self, kind: Message, status: int, why: str) -> bool:
        """The server replied with an error. Returns whether the session can go on after it."""
        given_up = kind is not self._under_way
        if kind is not Message.SUSPEND:
            return given_up
        if given_up and status != Status.DEVICE_ERROR:
            return True  # our own RESET came before the reply (P5.12)
        # A device that broke is being reset already, and has no second chance: it would break again.
        self._under_way = None
        self._wanted = False
        self._tell(RemoteError(why))
        self._hold()
        self._next()
        return True

    def _suspension_changed(self, suspended: bool) -> None:
        self.suspended = suspended
        self._on_change(suspended)
        if suspended:
            self._tell(None)
        self._hold()
        self._next()

    def _tell(self, outcome: PowervioError | None) -> None:
        done, self._when_suspended = self._when_suspended, None
        if done is not None:
            done(outcome)

    def _was_reset(self) -> None:
        """The device touches the queue no more: what it completed counts, the rest is the driver's again (P5.11)."""
        queue = self._resets[0][0]
        self._look([queue.index])
        if not self._session:
            return  # a completion ended it
        self._channels.queue_was_reset(queue.index)
        notifier = self._channels.notifier(queue.index)
        notifier.forget_signal(queue.index)
        self._taken_back = queue.renew(notifier, self._channels.generation(queue.index))
        self._under_way = Message.FIND_VQS
        self._handshake.find_vqs([queue])

    def _found_again(self) -> None:
        _, done = self._resets.popleft()
        taken_back, self._taken_back = self._taken_back, []
        self._under_way = None
        done(taken_back)
        self._hold()
        self._next()
