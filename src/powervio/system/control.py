"""The control socket of a running system: one JSON object a line each way.

    {"request": "ps"}                     ->  {"ok": true, "result": {...}}
    {"request": "down", "arguments": {}}  ->  {"ok": true, "result": {...}}, when everything has stopped
    {"request": "console", "arguments": {"client": "client1"}}  ->  {"ok": true, ...}, then frames (`operator`)
    anything else                         ->  {"ok": false, "error": "what was wrong and what was expected"}

A connection may make any number of requests, one after the other. Whoever can reach the socket may command the system:
its folder belongs to the user who started it (`rundir`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from powervio.errors import LocalError, PowervioError
from powervio.system.rundir import is_running, running_names, socket_of

_log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 1024
"""Bytes of a request."""
ANSWER_LIMIT = 64 << 20
"""Bytes of an answer that a client takes."""
MAX_CLIENTS = 32
IDLE_LIMIT = 60.0
"""Seconds for which a client may say nothing, or not take its answer."""

Handler: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Carries out one request; takes its arguments and returns its result. `PowervioError` becomes the answer's error."""

TakeOver: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Has a connection for itself once its request was answered, until it returns."""
StreamHandler: TypeAlias = Callable[[dict[str, Any]], Awaitable[tuple[dict[str, Any], TakeOver]]]
"""As `Handler`, for a request after which the connection carries something else."""


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    request: str
    arguments: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Call)


class ControlServer:
    """Answers requests on a Unix socket, in the event loop's thread."""

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        streams: Mapping[str, StreamHandler] | None = None,
        idle_limit: float = IDLE_LIMIT,
    ) -> None:
        """`handlers` and `streams` are by the name of the request; `idle_limit` is seconds. `path` must be free."""
        self.path = path
        self._streams = streams or {}
        self._handlers = handlers
        self._idle_limit = idle_limit
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], bool] = {}
        """Every client's task, and whether it has a request in hand."""

    async def start(self) -> None:
        """Listen. Raises `LocalError`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LINE_LIMIT)
        except OSError as error:
            listener.close()
            raise LocalError(f"control socket {self.path}: {error.strerror or error}") from error

    async def close(self, timeout: float = 2.0) -> None:
        """Stop listening; requests in hand get up to `timeout` seconds to be answered."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        busy = [task for task, has_request in self._clients.items() if has_request]
        if busy:
            await asyncio.wait(busy, timeout=timeout)
        rest = list(self._clients)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.write(_error(f"there are {MAX_CLIENTS} control connections already; try again later"))
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients[task] = False
        task.add_done_callback(self._clients.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._server is not None:
                try:
                    async with asyncio.timeout(self._idle_limit):
                        line = await reader.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    await self._send(writer, _error(f"a request has at most {LINE_LIMIT} bytes"))
                    return
                self._clients[task] = True
                answer, take_over = await self._answer(line)
                self._clients[task] = False
                if take_over is not None:
                    writer.write(answer)
                    await take_over(reader, writer)
                    return
                self._clients[task] = True
                await self._send(writer, answer)
                self._clients[task] = False
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # the client left, said nothing for too long, or does not take its answer
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        async with asyncio.timeout(self._idle_limit):
            await writer.drain()

    async def _answer(self, line: bytes) -> tuple[bytes, TakeOver | None]:
        try:
            call = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _error(f'not a request: {error}; expected a line such as {{"request": "ps"}}'), None
        handler, stream = self._handlers.get(call.request), self._streams.get(call.request)
        take_over: TakeOver | None = None
        try:
            if handler is not None:
                result = await handler(call.arguments)
            elif stream is not None:
                result, take_over = await stream(call.arguments)
            else:
                known = ", ".join(sorted({*self._handlers, *self._streams}))
                return _error(f"there is no request {call.request!r}; expected one of {known}"), None
        except PowervioError as error:
            return _error(str(error)), None
        except Exception as error:
            _log.exception("control request %s failed", call.request)
            return _error(f"{call.request} failed in the system: {error!r}"), None
        return json.dumps({"ok": True, "result": result}).encode() + b"\n", take_over


def _error(reason: str) -> bytes:
    return json.dumps({"ok": False, "error": reason}).encode() + b"\n"


# -- the other end


def choose(name: str | None) -> str:
    """The system that a command is for: the one named, or the only one that runs. Raises `LocalError`."""
    running = running_names()
    if name is not None:
        if name in running:
            return name
        raise LocalError(f'no system named "{name}" is running ({_listed(running)})')
    if len(running) == 1:
        return running[0]
    if not running:
        raise LocalError("no system is running; `powervio up SYSTEM.toml` starts one")
    raise LocalError(f"several systems are running, say which: {', '.join(running)}")


def _listed(names: list[str]) -> str:
    return f"running: {', '.join(names)}" if names else "none is"


def converse(name: str, request: str, arguments: dict[str, Any], *, timeout: float = 10.0) -> socket.socket:
    """Make a request of a running system after which the connection is a stream; returns it, blocking.

    Raises `LocalError` when the system does not answer, or answers with an error.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(client, name, time.monotonic() + timeout)
        client.settimeout(timeout)
        client.sendall(json.dumps({"request": request, "arguments": arguments}).encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            piece = client.recv(1)  # what follows the line is the stream's
            if not piece or len(answer) > LINE_LIMIT:
                raise LocalError(f'the system "{name}" ended the connection without an answer')
            answer += piece
        found = json.loads(answer)
        if not found["ok"]:
            raise LocalError(found["error"])
        client.settimeout(None)
    except OSError as error:
        client.close()
        raise LocalError(f'the system "{name}" cannot be reached at {socket_of(name)}: {error}') from error
    except LocalError:
        client.close()
        raise
    return client


def ask(name: str, request: str, arguments: dict[str, Any] | None = None, *, timeout: float = 10.0) -> dict[str, Any]:
    """Make one request of a running system and return its result; `timeout` is seconds for all of it.

    Raises `LocalError` when it does not answer, or answers with an error.
    """
    deadline = time.monotonic() + timeout
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            _connect(client, name, deadline)
            client.sendall(json.dumps({"request": request, "arguments": arguments or {}}).encode() + b"\n")
            while not answer.endswith(b"\n"):
                client.settimeout(max(0.001, deadline - time.monotonic()))
                piece = client.recv(1 << 20)
                if not piece or len(answer) + len(piece) > ANSWER_LIMIT:
                    raise LocalError(f'the system "{name}" ended the connection without an answer')
                answer += piece
    except TimeoutError:
        raise LocalError(f'the system "{name}" did not answer {request} within {timeout:g} s') from None
    except OSError as error:
        raise LocalError(f'the system "{name}" cannot be reached at {socket_of(name)}: {error.strerror}') from error
    found = json.loads(answer)
    if not found["ok"]:
        raise LocalError(found["error"])
    result: dict[str, Any] = found["result"]
    return result


def _connect(client: socket.socket, name: str, deadline: float) -> None:
    """Connect, waiting for a system that has its name but no socket yet, because it is just starting."""
    while True:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            client.connect(str(socket_of(name)))
            return
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline or not is_running(name):
                raise
            time.sleep(0.05)


def wait_until_down(name: str, timeout: float) -> bool:
    """Wait up to `timeout` seconds until no process runs a system of this name; whether that is so."""
    deadline = time.monotonic() + timeout
    while is_running(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
