"""A VIO server in a process of its own, which the hypervisor's process starts: `server_main SOCKET PARENT`.

SOCKET is the descriptor of the socket by which it hears what to serve (`server_messages`), PARENT the hypervisor's
process. It ends with either, and with its partition; what its devices had in hand then is as after a crash.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from powervio.errors import LocalError, PowervioError
from powervio.gateway.remote_port import RemotePort
from powervio.storage.share import open_shared
from powervio.system import server_messages as say
from powervio.system.sea_end import SeaEnd, end_at_adapters
from powervio.system.serving import DiskEnd, open_image
from powervio.vio.kernel import PartitionKernel

T = TypeVar("T")
_log = logging.getLogger("powervio.system.server_main")

CALL_LIMIT = 15.0
"""Seconds for the partition's thread to do something between its requests."""
_PR_SET_PDEATHSIG = 1
_ENDED = 3
"""Exit status when the hypervisor has gone."""


class _Server:
    """The main thread: it hears requests; the partition has a thread of its own."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._port: RemotePort
        self._kernel: PartitionKernel
        self._disks: dict[int, DiskEnd] = {}
        self._served: set[int] = set()
        self._seas: dict[str, SeaEnd] = {}
        self._stopped = False
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Until it is told to stop, or the hypervisor has gone."""
        while not self._stopped:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    self._hear()
                elif not self._port.check():
                    _log.error("VIO server %s: %s", self._port.partition_name, self._port.lost)
                    os._exit(_ENDED)

    def _hear(self) -> None:
        packet, fds, _, _ = socket.recv_fds(self._control, say.PACKET, 1)
        if not packet:
            os._exit(_ENDED)
        ask = say.unpack_ask(packet)
        try:
            self._answer(ask, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, ask: say.Ask, fds: list[int]) -> None:
        try:
            answer = say.Answer(ask.number, "done", value=self._carry_out(ask.request, fds))
        except TimeoutError as error:
            answer = say.Answer(ask.number, "late", str(error))
        except OSError as error:
            answer = say.Answer(ask.number, "failed", error.strerror or str(error), error.errno or 0)
        except PowervioError as error:
            answer = say.Answer(ask.number, "refused", str(error))
        except Exception as error:  # a fault of ours: what is served goes on
            _log.exception("%s failed", type(ask.request).__name__)
            answer = say.Answer(ask.number, "refused", repr(error))
        self._control.sendall(say.pack(answer))

    def _carry_out(self, request: say.Request, fds: list[int]) -> dict[str, Any]:
        match request:
            case say.Begin():
                return self._begin(request)
            case say.Open():
                return self._open(request, fds)
            case say.Serve():
                self._in_partition(lambda: self._serve(request))
                self._served.add(request.disk)
            case say.Do():
                self._do(request)
            case say.Look():
                return {str(number): self._disks[number].facts() for number in self._served}
            case say.ServeSea():
                self._in_partition(lambda: self._serve_sea(request))
            case say.AskSea():
                return self._in_partition(lambda: self._ask_sea(request))
            case say.Stop():
                self._stop()
        return {}

    def _in_partition(self, function: Callable[[], T]) -> T:
        return self._kernel.call(function, CALL_LIMIT)  # type: ignore[return-value]

    def _begin(self, request: say.Begin) -> dict[str, Any]:
        logging.getLogger().setLevel(request.log_level)
        self._port = RemotePort.connect(request.door, limit=request.limit)
        self._kernel = PartitionKernel(self._port)
        self._poll.register(self._port.connection_fd, select.POLLIN)
        self._kernel.start()
        return {"partition": self._port.partition_name}

    def _open(self, request: say.Open, fds: list[int]) -> dict[str, Any]:
        declared = request.declared
        image = (
            open_shared(declared.image, fds[0], read_only=declared.readonly, direct=declared.direct)
            if fds
            else open_image(declared, request.folder)
        )
        try:
            made = DiskEnd(declared, image)
        except BaseException:
            image.close()
            raise
        self._disks[request.disk] = made
        return {
            "size": made.size,
            "capacity": made.capacity,
            "block_size": made.block_size,
            "read_only": made.read_only,
            "is_raw": made.is_raw,
        }

    def _serve(self, request: say.Serve) -> None:
        if request.unit_address not in self._port.nodes:
            self._port.watch_tree()  # the adapter is new, and nobody here may have been told yet
        node = self._port.nodes.get(request.unit_address)
        if node is None:
            raise LocalError(f"the device tree has no adapter {request.unit_address:#x}")
        self._disks[request.disk].serve(self._kernel, node)

    def _serve_sea(self, request: say.ServeSea) -> None:
        end = end_at_adapters(request.plan, self._kernel, request.trunks, request.control)
        self._seas[request.plan.name] = end
        end.start()

    def _ask_sea(self, request: say.AskSea) -> dict[str, Any]:
        end = self._seas.get(request.name)
        if end is None:
            raise LocalError(f"SEA {request.name} is not served")
        if request.mode is not None:
            end.request(request.mode)
        return end.facts()

    def _do(self, request: say.Do) -> None:
        disk = self._disks[request.disk]
        match request.what:
            case "flush":
                disk.flush()
            case "close":
                self._served.discard(request.disk)
                del self._disks[request.disk]
                disk.close()
            case _:
                method = getattr(disk, request.what)
                self._in_partition(method if request.size is None else lambda: method(request.size))

    def _stop(self) -> None:
        """Raises `LocalError` with all that went wrong."""
        self._stopped = True
        problems: list[str] = []

        def attempt(what: str, step: Callable[[], object]) -> None:
            try:
                step()
            except (LocalError, OSError) as error:  # TimeoutError is one
                problems.append(f"{what}: {error}")

        for end in self._seas.values():
            attempt("an adapter", lambda end=end: self._in_partition(lambda: _end_sea(end)))  # type: ignore[misc]
        for number in self._served:
            attempt("its end", lambda number=number: self._in_partition(self._disks[number].stop))  # type: ignore[misc]
        if not self._kernel.stop(CALL_LIMIT):
            problems.append(f"its thread did not end within {CALL_LIMIT:.0f} s")
        for disk in self._disks.values():
            attempt("closing an image", disk.close)
        if problems:
            raise LocalError("\n".join(problems))


def _end_sea(end: SeaEnd) -> None:
    end.stop()
    end.close()


def main() -> None:
    """The program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        os._exit(_ENDED)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        _Server(control).run()
    except (OSError, msgspec.MsgspecError) as error:
        _log.error("the hypervisor's process has gone: %s", error)
        os._exit(_ENDED)


if __name__ == "__main__":
    main()
