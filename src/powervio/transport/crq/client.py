"""The driver's end of virtio over CRQ (virtio_vio): one `VirtioVio` brings one driver to one client adapter.

It walks the configuration handshake (`handshake`), which sets up the queues, and starts the driver. When the connection
or the server goes away it stops the driver, waits for the server, and walks again; requests that were in flight are the
driver's to submit anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import Enum

from powervio.errors import PowervioError, RemoteError
from powervio.papr.codes import HcallError
from powervio.papr.nodes import VdeviceNode
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.client_session import ClientSession, DriverMemory
from powervio.transport.crq.driver_queue import CrqDriverQueue, IndirectPolicy
from powervio.transport.crq.handshake import STEPS, Handshake
from powervio.transport.crq.protocol import (
    HIGHEST_REVISION,
    REPLY,
    DeviceHeader,
    Message,
    Status,
    decode,
)
from powervio.transport.crq.quiescence import Quiescence
from powervio.transport.crq.receivers import UsedReceiver
from powervio.transport.crq.replies import AwaitedReplies
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dispatcher import Timer
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import status as device_status
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer

_log = logging.getLogger(__name__)

_QUIET = 5.0
"""Seconds without trouble after which earlier failures are forgotten."""
_FAILURE_LIMIT = 8


class ClientState(Enum):
    """Where a client end stands, for people and tests."""

    CLOSED = "closed"
    WAITING = "waiting"
    """For the server, or for the end of a pause after a failure."""
    NEGOTIATING = "negotiating"
    RUNNING = "running"
    SUSPENDED = "suspended"
    """The driver is started, and its device is quiet until `resume`."""
    RESETTING = "resetting"
    FAILED = "failed"
    """Negotiation cannot succeed; a server that starts anew gets another try."""
    GONE = "gone"
    """The adapter was unplugged; nothing brings it back."""


class VirtioVio:
    """A virtio driver behind one client adapter, in the thread of its partition."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        driver: Driver,
        *,
        revision: int = HIGHEST_REVISION,
        big_endian: bool = False,
        indirect: IndirectPolicy = "auto",
        event_idx: bool = False,
        packed: bool = False,
        in_order: bool = False,
        lazy_unmapping: bool = False,
        largest_queue: int = 1024,
        channels: bool | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`revision` is the highest that is proposed; `big_endian` is the ring byte order of revision 0.

        EVENT_IDX is off by default: over remote DMA arming it costs the server two calls a batch, more than the kicks
        it saves (docs/architecture.md, Cost). In revision 1 `packed` asks for packed rings, `in_order` for a device
        that gives buffers back in order (the server has to offer it), and a queue of the device that has more than
        `largest_queue` entries (a power of two) is used with so many: its rings take this partition's memory.
        With `lazy_unmapping` up to 64 buffers of each queue stay mapped after the device gave them back, until more are
        unmapped together: that saves a call for a request that comes alone, and lets the server read and write memory
        that is the client's again. `channels` says whether queues are to be carried by Sub-CRQs where both ends and the
        platform can (P5.13): by default when there is more than one. `trace` is told of each handshake step as it
        happens.
        """
        self.node = node
        self.driver = driver
        self.state = ClientState.CLOSED
        self.failure = ""
        """Why the last session could not be made or ended, in words."""
        self.sessions = 0
        """Sessions that came to DRIVER_OK."""
        self._retired = False
        self.on_state: Callable[[ClientState], None] | None = None
        self._kernel = kernel
        self._dma = DmaSpace(kernel.port, kernel.pages, node.windows[0])
        self._memory = DriverMemory(kernel.pages, self._dma)
        self._session: ClientSession | None = None
        self._pause: Timer | None = None
        self._failures = 0
        self._last_failure = 0.0
        self._receiver = UsedReceiver(driver.completed, self._message, self._completion_failed)
        self.crq = CrqEnd(
            kernel,
            node,
            self._dma,
            on_message=self._receiver.message,
            on_open=self._negotiate,
            on_lost=self._lost,
            on_gone=self._gone,
            on_drained=self._receiver.drained,
        )
        self._replies = AwaitedReplies(kernel, self.crq, self._fail)
        self._channels = Channels(
            kernel,
            node,
            self._dma,
            self.crq,
            Message.USED,
            self._receiver,
        )
        self._handshake = Handshake(
            driver,
            self._dma,
            self.crq,
            self._channels,
            revision=revision,
            big_endian=big_endian,
            indirect=indirect,
            event_idx=event_idx,
            packed=packed,
            in_order=in_order,
            lazy_unmapping=lazy_unmapping,
            largest_queue=largest_queue,
            use_channels=channels,
            request=self._request,
            fail=self._fail,
            trace=trace or (lambda step: None),
        )
        self._receiver.handshake = self._handshake
        self._quiescence = Quiescence(
            self._handshake,
            self._channels,
            request=self._request,
            look=self._look,
            on_change=lambda suspended: self._enter(ClientState.SUSPENDED if suspended else ClientState.RUNNING),
        )

    # -- life

    def start(self) -> None:
        """Register with the hypervisor and negotiate as soon as the server is there."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._kernel.watch_tree(self._tree_changed)
        self._enter(ClientState.WAITING)
        self.crq.register()
        self._tree_changed()

    def stop(self) -> None:
        """End the session and close the CRQ; the driver is stopped, its requests stay its own."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._close()
        self._quiescence.abandon("the adapter was stopped")
        if self.state is not ClientState.GONE:
            self._enter(ClientState.CLOSED)

    def retire(self) -> None:
        """Stop for good and give all memory back, the driver's too; the adapter may be unplugged then, or was before.

        Harmless when it was done already.
        """
        if self._retired:
            return
        self.stop()  # may raise while the hypervisor is busy with the CRQ; after unplugging it does not
        self._retired = True
        self.driver.release(self._memory.release)
        self._handshake.release()
        self._channels.release()
        self.crq.release()

    def _tree_changed(self) -> None:
        """A server that is away may come back as long as our node is there; without it nobody ever will."""
        if self.state is ClientState.GONE or not self.crq.gone:
            return
        self.failure = "the adapter was unplugged"
        _log.info("adapter %s: %s", self.node.location_code, self.failure)
        self._kernel.unwatch_tree(self._tree_changed)
        self._cancel_pause()
        self.crq.abandon()
        self.driver.removed(self.failure)
        self._end_session()
        self._quiescence.abandon(self.failure)
        self._enter(ClientState.GONE)

    def reset(self) -> None:
        """Start anew from this side: close and register the CRQ again, then negotiate."""
        if self.state is ClientState.GONE:
            return
        self._close()
        self._enter(ClientState.WAITING)
        self.crq.register()

    def _close(self) -> None:
        self._cancel_pause()
        self.crq.close()
        self._end_session()  # no-op when the connection was open: then its loss did it

    @property
    def rejected(self) -> int:
        """Messages of the server that made no sense."""
        return self._receiver.rejected

    @property
    def running(self) -> bool:
        """Whether the driver is started."""
        return self.state in (ClientState.RUNNING, ClientState.SUSPENDED)

    @property
    def channels(self) -> int:
        """How many queues are carried by Sub-CRQs."""
        return len(self._channels)

    @property
    def revision(self) -> int | None:
        """What was settled with the server; None while there is none."""
        return self._handshake.revision

    @property
    def header(self) -> DeviceHeader:
        """What the server last said of its device."""
        return self._handshake.header

    @property
    def config_snapshot(self) -> bytes:
        """The device's config space, as far as this end knows it."""
        return self._handshake.config

    @property
    def _number(self) -> int:
        return self._handshake.number

    @property
    def _queues(self) -> list[CrqDriverQueue]:
        return self._handshake.queues

    def _enter(self, state: ClientState) -> None:
        if state is not self.state:
            self.state = state
            if self.on_state is not None:
                self.on_state(state)

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _lost(self) -> None:
        """The connection is gone. What the device completed before is still completed, then the driver is stopped."""
        self._cancel_pause()
        self._end_session()
        if self.state is not ClientState.CLOSED:
            self._enter(ClientState.WAITING)

    def _gone(self) -> None:
        """The server has ended its work and left (P1.9). One that could not be lived with makes room for the next."""
        if not self.crq.suspended:
            self.driver.fenced()
        if self.state is ClientState.FAILED:
            self._enter(ClientState.WAITING)

    def _end_session(self) -> None:
        self._replies.forget()
        self._quiescence.end()
        self._receiver.used.clear()
        self._receiver.live = False
        session, self._session = self._session, None
        self._memory.may_map = False
        if session is not None:
            session.live = False
        queues, self._handshake.queues = self._handshake.queues, []
        for queue in queues:
            queue.ending = True
        try:
            if session is not None:
                for queue in queues:
                    self._last_completions(queue)
        finally:
            self.crq.forget_signals()
            self._channels.close()
            for queue in queues:
                self._end_queue(queue)
            if session is not None:
                self.driver.stop()

    def _end_queue(self, queue: CrqDriverQueue) -> None:
        try:
            queue.end()
        except Exception:  # the other queues and the driver have to hear of the end all the same
            _log.exception("adapter %s: ending queue %d failed", self.node.location_code, queue.index)

    def _last_completions(self, queue: CrqDriverQueue) -> None:
        """What the device has used and told in the ring is completed, whatever happened to the session (P1.6)."""
        try:
            self.driver.completed(queue)
        except PowervioError as error:
            _log.info("adapter %s: at the end of the session: %s", self.node.location_code, error)
        except Exception:
            _log.exception("adapter %s: the driver failed at the end of the session", self.node.location_code)

    def _fail(self, reason: str, *, final: bool = False) -> None:
        """Something of the server's was wrong: try again after a pause that grows, or wait for another server."""
        self._count_failure(reason)
        self._leave(final=final)

    def _leave(self, *, final: bool) -> None:
        self._close()
        if final or self._failures > _FAILURE_LIMIT:
            self._enter(ClientState.FAILED)
            self.crq.register()  # only to hear of another server
            if self.crq.state is CrqState.WAITING:
                self._enter(ClientState.WAITING)  # this one is not there any more
        else:
            self._enter(ClientState.WAITING)
            self._pause = self._kernel.call_later(0.01 * 2**self._failures, self.crq.register)

    def _count_failure(self, reason: str) -> int:
        """Remember why; how many failures came close after one another."""
        now = self._kernel.clock()
        self._failures = self._failures + 1 if now - self._last_failure < _QUIET else 1
        self._last_failure = now
        self.failure = reason
        _log.warning("adapter %s: %s", self.node.location_code, reason)
        return self._failures

    # -- requests to the server

    def _request(self, kind: Message, **values: int) -> None:
        self._replies.send(kind, self._number, **values)

    def _negotiate(self) -> None:
        """The connection is open."""
        self.driver.fenced()  # so the server has ended what it did before (P1.5, P1.9)
        if self.state is ClientState.FAILED:
            return  # the same server would give the same answers
        self._enter(ClientState.NEGOTIATING)
        self._handshake.probe()

    def _live(self, reply: dict[str, int]) -> None:
        self._session = ClientSession(self._handshake, self._quiescence, self._memory, self._request)
        self._receiver.live = True
        self._memory.may_map = True
        self.sessions += 1
        self._enter(ClientState.RUNNING)
        self._quiescence.begin()
        self.driver.start(self._session)
        if self._handshake.config_stale and self._session is not None:
            self._request(Message.CONFIG_READ)  # it changed after ACKNOWLEDGE
        self._quiescence.proceed()

    # -- while it runs

    def suspend(self, done: Callable[[PowervioError | None], None]) -> None:
        """Have the device finish what it has in hand and then be quiet, until `resume` (P5.12).

        What the driver adds meanwhile waits in its queues. A new server is suspended too, before it gets a request.
        `done` is called once, at the latest when the adapter is stopped: with None when the device is suspended, or
        with why it will not be; then it goes on.

        Raises `LocalError` when there is no session, SUSPEND was not negotiated, or it is suspended already.
        """
        self._quiescence.suspend(done)

    def resume(self) -> None:
        """Take `suspend` back; harmless when nothing is suspended. `on_state` tells when the device runs again."""
        self._quiescence.resume()

    def _config_written(self, reply: dict[str, int]) -> None:
        pass

    def _config_was_read(self, reply: dict[str, int]) -> None:
        self._handshake.take_config()
        if self._session is not None:
            self.driver.config_changed()

    def _config_event(self, event: dict[str, int]) -> None:
        if not self.running:
            self._handshake.config_stale = True
            return
        if event["device_status"] & device_status.NEEDS_RESET:
            if self._count_failure("the device asked for a reset") > 1:
                self._leave(final=False)  # again: not at once, and not for ever
            else:
                self.device_reset()
        elif Message.CONFIG_READ not in self._replies:
            # a read that is under way is answered after this event, so it brings what the event tells of
            self._request(Message.CONFIG_READ)

    def device_reset(self) -> None:
        """Reset the device inside the session and negotiate again from ACKNOWLEDGE on (P5.9)."""
        if self.running:
            self._quiescence.end()
            self._enter(ClientState.RESETTING)
            self._request(Message.RESET)

    def _was_reset(self, reply: dict[str, int]) -> None:
        """Only now nothing of the old life is touched any more, so only now the driver gets its buffers back."""
        self._end_session()
        self.driver.fenced()
        self._enter(ClientState.NEGOTIATING)
        self._handshake.acknowledge()

    def allocate(self, length: int, *, mapped: bool) -> Buffer:
        """See `DriverTransport.allocate`."""
        return self._memory.allocate(length, mapped=mapped)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport.release`."""
        self._memory.release(buffer)

    # -- messages of the server

    def _message(self, high: int, low: int) -> None:
        kind = (high >> 48) & 0xFF
        number = (high >> 32) & 0xFFFF
        try:
            message = decode(high, low)
        except RemoteError as error:
            self._receiver.rejected += 1
            _log.info("adapter %s: %s", self.node.location_code, error)
            return
        # the answer to a PROBE that settled revision 0 comes with session 0
        if number != self._number and not (kind == Message.PROBE | REPLY and number == 0):
            self._receiver.rejected += 1
        elif kind == Message.CONFIG_CHANGED:
            self._config_event(message)
        elif (answered := self._replies.take(kind)) is not None:
            self._answered(answered, message)
        else:
            self._receiver.rejected += 1

    def _answered(self, kind: Message, reply: dict[str, int]) -> None:
        code = reply["status"]
        if code == Status.OK:
            try:
                if kind in STEPS and self._session is None:
                    STEPS[kind](self._handshake, reply)
                elif kind in _REPLIES:
                    _REPLIES[kind](self, reply)
                else:
                    self._quiescence.answered(kind)
            except PowervioError as error:
                # no memory or window for what the device asks for, or a device that the driver cannot live with
                self._fail(f"after {kind.name}: {error}")
            except Exception as error:
                _log.exception("adapter %s: the driver failed", self.node.location_code)
                self._fail(f"after {kind.name}: the driver failed: {error!r}")
        elif kind == Message.CHANNELS:
            self._handshake.channels_refused()
        elif kind == Message.CONFIG_WRITE:
            _log.warning("adapter %s: the device refused a config write", self.node.location_code)
        else:
            name = Status(code).name if code in Status._value2member_map_ else str(code)
            why = f"the server answered {kind.name} with {name}"
            if self._session is None or kind in _REPLIES:
                self._fail(why, final=code != Status.DEVICE_ERROR)
            elif not self._quiescence.refused(kind, code, why):
                self._fail(why)

    def _look(self, queues: Iterable[int]) -> None:
        self._receiver.used.update(queues)
        self._receiver.drained()

    def _completion_failed(self, index: int, error: Exception) -> bool:
        """The driver could not take what queue `index` has used; whether the session goes on."""
        if isinstance(error, RemoteError):
            self._fail(f"queue {index}: the device broke the ring: {error}")
            return False
        if isinstance(error, HcallError):
            # the server had used what it still moves: without its connection it cannot
            self._fail(f"queue {index}: what the device has used cannot be unmapped: {error}")
            return False
        _log.error("adapter %s: completing queue %d failed", self.node.location_code, index, exc_info=error)
        return True


_REPLIES: dict[int, Callable[[VirtioVio, dict[str, int]], None]] = {
    Message.DRIVER_OK: VirtioVio._live,
    Message.CONFIG_WRITE: VirtioVio._config_written,
    Message.CONFIG_READ: VirtioVio._config_was_read,
    Message.RESET: VirtioVio._was_reset,
}
"""What follows the reply to each message, beside the handshake's `STEPS` and `Quiescence.answered`."""
