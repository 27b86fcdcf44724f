"""An NBD client that does what the tests want, right or wrong: it sends bytes and takes replies apart."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import ChunkType, Command, Option, Request


@dataclass
class Answered:
    """The whole reply to one request."""

    cookie: int
    error: int = 0
    message: str = ""
    data: bytes = b""
    extents: tuple[tuple[int, int], ...] = ()
    chunks: int = 0


class RawClient:
    """One connection in transmission."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.structured = False
        self._reads: dict[int, Request] = {}
        self._cookie = 0

    @classmethod
    async def connect(cls, path: Path, *, structured: bool = True) -> RawClient:
        client = cls(*await asyncio.open_unix_connection(path, limit=64 << 20))
        await client.reader.readexactly(18)
        client.writer.write(nbd.ClientFlags(3).pack())
        if structured:
            await client.option(Option.STRUCTURED_REPLY)
            await client.option(Option.SET_META_CONTEXT, nbd.MetaQuery("", (nbd.BASE_ALLOCATION,)).pack())
            client.structured = True
        await client.option(Option.GO, nbd.ExportChoice("", ()).pack())
        return client

    async def option(self, option: int, data: bytes = b"") -> int:
        """Ask and return the final reply's type."""
        self.writer.write(nbd.pack_option(option, data))
        while True:
            header = nbd.OptionReplyHeader.unpack(await self.reader.readexactly(20))
            await self.reader.readexactly(header.length)
            if header.reply == nbd.Reply.ACK or header.reply & nbd.REPLY_ERROR_BIT:
                return header.reply

    def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> int:
        """Send a request without waiting; returns its cookie."""
        self._cookie += 1
        request = Request(flags, command, self._cookie, offset, length or len(data))
        if command == Command.READ:
            self._reads[self._cookie] = request
        self.writer.write(request.pack() + data)
        return self._cookie

    async def answer(self) -> Answered:
        """The next whole reply; chunks of several requests must not be mixed where this is used."""
        answered: Answered | None = None
        while True:
            magic = int.from_bytes(await self.reader.readexactly(4), "big")
            if magic == nbd.SIMPLE_REPLY_MAGIC:
                _, error, cookie = nbd.SIMPLE_REPLY.unpack(bytes(4) + await self.reader.readexactly(12))
                answered = Answered(cookie, error)
                request = self._reads.pop(cookie, None)
                if request is not None and not error:
                    assert not self.structured
                    answered.data = await self.reader.readexactly(request.length)
                return answered
            assert magic == nbd.CHUNK_MAGIC
            header = bytes(4) + await self.reader.readexactly(16)
            _, flags, kind, cookie, length = nbd.CHUNK.unpack(header)
            content = await self.reader.readexactly(length)
            answered = answered or Answered(cookie)
            assert answered.cookie == cookie
            answered.chunks += 1
            match kind:
                case ChunkType.OFFSET_DATA:
                    answered.data += content[8:]
                case ChunkType.BLOCK_STATUS:
                    answered.extents = nbd.BlockStatus.unpack(content).extents
                case ChunkType.ERROR:
                    failure = nbd.Failure.unpack(content)
                    answered.error, answered.message = failure.error, failure.message
            if flags & nbd.CHUNK_DONE:
                self._reads.pop(cookie, None)
                return answered

    async def do(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Answered:
        """Send a request and wait for its reply."""
        cookie = self.send(command, offset, length, flags=flags, data=data)
        answered = await self.answer()
        assert answered.cookie == cookie
        return answered

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
