"""A disk in memory for virtual machines, with a device of 30 lines.

It begins with what IMAGE holds; nothing is written back:

    python examples/memory_disk.py SOCKET IMAGE
    qemu-system-x86_64 ... -chardev socket,id=c,path=SOCKET -device vhost-user-blk-pci,chardev=c
"""

from __future__ import annotations

import sys
from pathlib import Path

from powervio.errors import RemoteError
from powervio.system.vhost_user import BackEndOptions, serve
from powervio.virtio import block as blk
from powervio.virtio.device import Device
from powervio.virtio.queue import ByteOrder, Request

HEADER = blk.REQUEST_HEADER["little"]


class MemoryDisk(Device):
    device_id = blk.DEVICE_ID
    features = blk.F_FLUSH

    def __init__(self, contents: bytearray) -> None:
        super().__init__()
        self.data = memoryview(contents)

    def config(self, byteorder: ByteOrder) -> bytes:
        return blk.pack_config(blk.BlockConfig(capacity=len(self.data) // blk.SECTOR), byteorder)

    def handle(self, request: Request) -> None:
        source, target = request.readable, request.writable
        room, size, filled, status = target.length - 1, source.length - 16, 0, blk.S_IOERR
        try:
            kind, _, sector = HEADER.unpack(source.read(0, 16)) if size >= 0 else (-1, 0, 0)
            at = sector * blk.SECTOR
            if kind == blk.T_IN and 0 <= room <= len(self.data) - at:
                target.write(0, self.data[at : at + room])
                filled, status = room, blk.S_OK
            elif kind == blk.T_OUT and size <= len(self.data) - at:
                self.data[at : at + size] = source.read(16, size)
                status = blk.S_OK
            elif kind == blk.T_FLUSH:
                status = blk.S_OK
            target.write(room, bytes((status,)))
            request.complete(filled + 1 if filled == room else 0)
        except (RemoteError, ValueError):  # no memory for the data, or no room for a status
            request.complete(0)


if __name__ == "__main__":
    disk = MemoryDisk(bytearray(Path(sys.argv[2]).read_bytes()))
    serve(disk, path=sys.argv[1], fd=None, options=BackEndOptions())
