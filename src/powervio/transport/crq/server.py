"""The device's end of virtio over CRQ (virtio_crq): one `VirtioCrq` serves one device to one client adapter.

Here are its life and what comes in; the configuration messages are carried out in `configuration`, requests are served
in `service`. What the client sends is checked where it is used; the worst that it can do is to get a reply with an
error status, a device that needs a reset, or its own I/O failed.

One session lasts from PROBE to the next PROBE or the loss of the CRQ connection (P1.4); a RESET inside a session
returns the device to its state after PROBE (P5.9).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from powervio.errors import LocalError, RemoteError
from powervio.papr.codes import ReturnCode
from powervio.papr.crq import TransportEvent
from powervio.papr.nodes import VdeviceNode
from powervio.papr.vioctl import Vioctl
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.configuration import HANDLERS, Configuration
from powervio.transport.crq.parts import DeviceParts, QueueParts
from powervio.transport.crq.protocol import (
    HEADERS,
    HIGHEST_REVISION,
    REPLY,
    REVISION_1_ONLY,
    SERVER_TYPES,
    Message,
    Status,
    decode,
    encode,
)
from powervio.transport.crq.receivers import KickReceiver
from powervio.transport.crq.redirect import REDIRECT_MIN, Redirector
from powervio.transport.crq.remote import RemoteWindow
from powervio.transport.crq.server_session import Later, Refused, ServerSession
from powervio.transport.crq.service import QueueService
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.device import Device
from powervio.virtio.status import StatusMachine

_log = logging.getLogger(__name__)

_PREPARE_MSEC = 10_000
"""How long requests in hand may take when the client's partition is to be suspended."""
_OVER = device_status.FAILED | device_status.NEEDS_RESET


class VirtioCrq:
    """A virtio device behind one server adapter, in the thread of its VIO server partition."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        device: Device,
        *,
        highest_revision: int = HIGHEST_REVISION,
        event_idx: bool = True,
        in_order: bool = False,
        channels: bool = True,
        redirect_min: int | None = REDIRECT_MIN,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`highest_revision` limits what is settled with the client; `trace` is told of each handshake step.

        With `in_order` IN_ORDER is offered, which many drivers accept wherever they find it: then one slow request
        keeps all behind it. Without `channels` all queues stay on the CRQ, as with a platform that has no Sub-CRQs.
        Transfers of `redirect_min` bytes or more go by redirected DMA if the partition has a physical adapter and the
        backing is a file; None copies all.
        """
        self.node = node
        self.device = device
        self._refused = 0
        """Messages that were refused, but for kicks."""
        self._retired = False
        self._kernel = kernel
        self._dma = DmaSpace(kernel.port, kernel.pages, node.windows[0])
        self._window = RemoteWindow(kernel.port, node, self._dma)
        device.on_config_change = self._config_changed
        device.scheduler = kernel
        redirector = None
        if kernel.engine is not None and redirect_min is not None:
            redirector = Redirector(kernel.port, node, kernel.engine, kernel.pages, redirect_min)
        self._service = QueueService(kernel, self._dma, self._window, device, self._needs_reset, redirector)
        self._kicks = KickReceiver(kernel, self._service, self._message)
        self.crq = CrqEnd(
            kernel,
            node,
            self._dma,
            on_message=self._kicks.message,
            on_open=lambda: None,
            on_lost=self._lost,
            on_drained=self._service.serve,
            on_event=self._suspension,
            prepare_msec=_PREPARE_MSEC,
        )
        self._kicks.inbox = self.crq.inbox
        self._channels = Channels(kernel, node, self._dma, self.crq, Message.KICK, self._kicks)
        self._configuration = Configuration(
            node.location_code,
            device,
            self._window,
            self._service,
            self._channels,
            highest_revision=highest_revision,
            event_idx=event_idx,
            in_order=in_order,
            use_channels=channels,
            reply=self._reply,
            on_broken=self._needs_reset,
            trace=trace or (lambda step: None),
        )
        self._kicks.configuration = self._configuration

    # -- life

    def start(self) -> None:
        """Register with the hypervisor and wait for a client."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._kernel.watch_tree(self._tree_changed)
        self.crq.register()

    def stop(self) -> None:
        """End the service: requests that were popped are completed or forgotten, nothing touches the client after."""
        self._kernel.unwatch_tree(self._tree_changed)
        self.crq.close()

    def retire(self) -> None:
        """Stop for good and give all memory back; the adapter may be unplugged then, or was before.

        Harmless when it was done already.
        """
        if self._retired:
            return
        self.stop()  # may raise while the hypervisor is busy with the CRQ; after unplugging it does not
        self._retired = True
        self.device.on_config_change = None
        self._channels.release()
        self.crq.release()
        self._window.release()

    def _tree_changed(self) -> None:
        """Our node may have gone: then the client's went with it, and there is nobody to serve any more."""
        if self.crq.gone:
            self._kernel.unwatch_tree(self._tree_changed)
            self.crq.abandon()
            self._lost()

    def reset(self) -> None:
        """Start anew from this side: the client gets FF02, then C001, and negotiates again."""
        self.crq.reset()

    @property
    def session(self) -> ServerSession | None:
        """What is known of the client since PROBE, for traces and people."""
        return self._configuration.session

    @property
    def rejected(self) -> int:
        """Messages, kicks and requests of the client that were refused."""
        return self._refused + self._kicks.refused + self._service.rejected + self._channels.rejected

    @property
    def channels(self) -> int:
        """How many queues are carried by Sub-CRQs."""
        return len(self._channels)

    @property
    def revision(self) -> int | None:
        """What was settled with the client; None while there is none."""
        return self.session.revision if self.session else None

    @property
    def state(self) -> str:
        """In one word, for people: closed, waiting, initializing, probed, negotiating, running, needs-reset."""
        session = self.session
        if session is None:
            return self.crq.state.value
        if session.status.status & device_status.NEEDS_RESET:
            return "needs-reset"
        if session.status.status & device_status.DRIVER_OK:
            return "running"
        return "negotiating" if session.status.status else "probed"

    def _suspension(self, event: TransportEvent) -> None:
        """FF09: finish what is in hand, begin nothing, and say so; FF0A: go on (P1.8)."""
        if event == TransportEvent.PREPARE_FOR_SUSPEND:
            self._service.freeze(self._ready_for_suspend)
        elif self._service.frozen:
            self._service.thaw()

    def _ready_for_suspend(self) -> None:
        code = self._kernel.port.vioctl(self.node.unit_address, Vioctl.READY_FOR_SUSPEND)[0]
        if code != ReturnCode.H_SUCCESS:
            _log.warning("adapter %s: READY_FOR_SUSPEND returned %d", self.node.location_code, code)

    def _lost(self) -> None:
        self._configuration.end()

    # -- moving to another server

    def parts(self) -> DeviceParts:
        """The state of the session as one value, from which `adopt` of another server goes on.

        Raises `LocalError` when there is no session, or a request is in the device's hands.
        """
        session = self.session
        if session is None:
            raise LocalError(f"adapter {self.node.location_code} has no session to hand over ({self.state})")
        indices = self._service.indices()
        return DeviceParts(
            device_id=self.device.device_id,
            offered_features=session.offered,
            driver_features=session.accepted,
            status=session.status.status,
            revision=session.revision,
            session=session.number,
            big_endian=session.big_endian,
            header=(session.header_address, session.header_length),
            config=(session.config_address, session.config_length),
            queues=[QueueParts(entry, *indices.get(index, (0, 0))) for index, entry in session.queues.items()],
            device=self.device.state(),
        )

    def adopt(self, parts: DeviceParts) -> None:
        """Go on where another server stopped; the client does not notice. The CRQ connection has to be open.

        Raises `LocalError` when the device here is another, or does not offer what the client accepted.
        """
        offered = self._configuration.offered(parts.revision)
        if parts.device_id != self.device.device_id or parts.driver_features & ~offered:
            missing = ", ".join(feature.names(parts.driver_features & ~offered, parts.device_id))
            raise LocalError(
                f"a device of type {parts.device_id} that needs {missing or 'nothing more'} cannot go on as type"
                f" {self.device.device_id}"
            )
        if self.crq.state is not CrqState.OPEN:
            raise LocalError(f"adapter {self.node.location_code} has no client to go on with ({self.crq.state.value})")
        self._lost()
        session = ServerSession(
            number=parts.session,
            revision=parts.revision,
            big_endian=parts.big_endian,
            header_address=parts.header[0],
            header_length=parts.header[1],
            status=StatusMachine(legacy=parts.revision == 0),
            offered=parts.offered_features,
            accepted=parts.driver_features,
            config_address=parts.config[0],
            config_length=parts.config[1],
            queues={queue.addresses.index: queue.addresses for queue in parts.queues},
        )
        session.status.status = parts.status
        session.status.suspend_negotiated = bool(parts.driver_features & feature.SUSPEND)
        self._configuration.session = session
        if parts.status & (device_status.DRIVER_OK | device_status.SUSPEND):
            self.device.restore(parts.device)
            for queue in parts.queues:
                self._configuration.add_queue(session, queue.addresses, (queue.last_available, queue.used_index))
            self._configuration.start_device(session)
            self._service.paused = bool(parts.status & device_status.SUSPEND)
            self._service.kick_all()
            self._kernel.call_soon(self._service.serve)

    # -- messages

    def _message(self, high: int, low: int) -> None:
        session = self._configuration.session
        number = (high >> 32) & 0xFFFF
        kind = (high >> 48) & 0xFF
        stale = kind != Message.PROBE and (session is None or number != session.number)
        if stale or kind >= SERVER_TYPES:
            # late messages of an older session have nobody who waits for a reply (P1.4); a server's type answered
            # would look like an event (P2.3)
            self._refused += 1
            return
        if session is not None and self._service.on_idle is not None:
            # replies are in the order of messages (P2.4), so the SUSPEND that waits is answered now
            self._configuration.give_up_suspend()
            self._refuse(Message.SUSPEND, session.number, Status.BAD_STATE, "interrupted by another message")
        handler = HANDLERS.get(kind)
        if handler is None or (session is not None and session.revision == 0 and kind in REVISION_1_ONLY):
            self._refuse(kind, number, Status.UNSUPPORTED, f"type {kind:#04x} does not exist in this revision (P2.3)")
            return
        if session is not None and session.status.status & _OVER and kind not in (Message.PROBE, Message.RESET):
            shown = device_status.names(session.status.status)
            self._refuse(kind, number, Status.BAD_STATE, f"device status {shown}: only RESET or PROBE lead on (P5.10)")
            return
        before = session.status.status if session is not None else 0
        try:
            value, data = handler(self._configuration, decode(high, low))
        except Later:
            pass
        except Refused as refused:
            self._refuse(kind, number, refused.status, str(refused))
        except RemoteError as error:
            self._undo(session, before)
            self._refuse(kind, number, Status.BAD_ADDRESS, str(error))
        except Exception:
            _log.exception("adapter %s: message %s failed here", self.node.location_code, Message(kind).name)
            self._undo(session, before)
            self._reply(kind, number, Status.DEVICE_ERROR)
        else:
            session = self.session  # PROBE has made another one
            self._reply(kind, session.number if session else number, Status.OK, value, data)

    def _undo(self, session: ServerSession | None, status: int) -> None:
        """A message that failed has changed nothing (P2.5)."""
        if session is not None and session is self.session:
            if not status & (device_status.DRIVER_OK | device_status.SUSPEND):
                self._service.end()
            session.status.status = status

    def _refuse(self, kind: int, number: int, status: Status, reason: str) -> None:
        self._refused += 1
        _log.info("adapter %s: message %#04x refused (%s): %s", self.node.location_code, kind, status.name, reason)
        self._reply(kind, number, status)

    def _reply(self, kind: int, number: int, status: Status, value: int = 0, data: int = 0) -> None:
        session = self.session
        shown = session.status.status if session else 0
        # an unknown type has no layout of its own; the reply's layout is that of every reply (P2.5)
        high, low = encode(Message.PROBE | REPLY, number, status=status, device_status=shown, value=value, data=data)
        high = (high & ~(0xFF << 48)) | ((kind | REPLY) & 0xFF) << 48
        self.crq.post(high, low)

    # -- what the device has to say

    def _needs_reset(self, reason: str) -> None:
        """The shared state is broken: say so and touch nothing until the driver resets (virtio 1.4, 2.1.2)."""
        session = self._configuration.current()
        self._refused += 1
        _log.warning("adapter %s needs a reset: %s", self.node.location_code, reason)
        suspending = self._service.on_idle is not None
        self._service.end()
        session.status.need_reset()
        if suspending:
            self._reply(Message.SUSPEND, session.number, Status.DEVICE_ERROR)
        status_address = session.header_address + HEADERS[session.revision].status_offset
        # the event says it too; a client that unmapped its header has itself to blame
        with contextlib.suppress(RemoteError):
            self._window.write(status_address, bytes((session.status.status,)))
        self._announce_config()

    def _config_changed(self) -> None:
        session = self.session
        if session is not None and session.status.status & device_status.ACKNOWLEDGE:
            self._announce_config()  # also before DRIVER: the client has a copy from ACKNOWLEDGE on (P5.14)

    def _announce_config(self) -> None:
        session = self._configuration.current()
        self.crq.post(
            *encode(
                Message.CONFIG_CHANGED,
                session.number,
                device_status=session.status.status,
                value=session.config_length,
                data=self.device.config_generation & 0xFFFF_FFFF,
            )
        )
