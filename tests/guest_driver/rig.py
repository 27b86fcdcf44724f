"""Parts of the guest's driver, compiled for this machine, in a rig where a test is driver, server and hypervisor."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DRIVER = HERE.parents[1] / "linux/virtio_vio"
PARTS = ("pool.c", "tce.c", "dma.c", "chain.c", "wire.c", "queue.c", "unserved.c", "commands.c")
INCLUDE = re.compile(r"^#include <((?:uapi/)?(?:linux|asm)/\S+)>", re.MULTILINE)
NET, BLOCK, SCSI, P9, FS = 1, 2, 8, 9, 26
PAGE = 4096
COUNTS = ("stuffed", "put", "kicked", "reused", "mapped")


def build(folder: Path) -> ctypes.CDLL:
    """Compile them; every header of the kernel's is the one of this machine, if there is one, and small_kernel.h."""
    texts = [path.read_text() for path in (*DRIVER.glob("*.h"), *(DRIVER / part for part in PARTS))]
    for name in sorted({name for text in texts for name in INCLUDE.findall(text)}):
        stub = folder / "include" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        plain = name.removeprefix("uapi/")
        look = "#include_next" if plain == name else "#include"
        has = "__has_include_next" if plain == name else "__has_include"
        stub.write_text(f'#if {has}(<{plain}>)\n{look} <{plain}>\n#endif\n#include "small_kernel.h"\n')
    sources = [str(DRIVER / part) for part in PARTS] + [str(HERE / "rig.c")]
    words = [
        "-std=gnu11",
        "-O1",
        "-g",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wno-unused-parameter",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
    ]
    paths = [f"-I{folder / 'include'}", f"-I{HERE}", f"-I{DRIVER}", "-o", str(folder / "rig.so")]
    subprocess.run(["gcc", *words, *paths, *sources], check=True)
    return ctypes.CDLL(str(folder / "rig.so"))


@dataclass
class Part:
    """A descriptor of the driver's: bytes of its memory, and whether the server is to write them."""

    length: int
    written: bool = False
    place: int = 0
    """Bytes from the beginning of a page at which it begins."""


class Chain:
    """Memory of a driver's for one chain, each part in pages of its own, one part's after another's."""

    def __init__(self, parts: Sequence[Part]) -> None:
        pages = [(part.place + part.length + PAGE - 1) // PAGE for part in parts]
        self._memory = ctypes.create_string_buffer((sum(pages) + 1) * PAGE)
        base = (ctypes.addressof(self._memory) + PAGE - 1) // PAGE * PAGE
        self.parts = parts
        self.addresses = [base + sum(pages[:n]) * PAGE + part.place for n, part in enumerate(parts)]

    def read(self, part: int) -> bytes:
        return ctypes.string_at(self.addresses[part], self.parts[part].length)

    def write(self, part: int, data: bytes) -> None:
        ctypes.memmove(self.addresses[part], data, len(data))


class Rig:
    """One adapter with its queues."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.rig_messages.restype = c_char_p
        library.rig_broken.restype = c_char_p
        library.rig_relaxed.restype = c_uint64
        self._chains: list[Chain] = []

    def add(self, queue: int, *parts: Part, data: Sequence[bytes] = ()) -> tuple[int, Chain]:
        """Make a chain available; its head, and its memory. The server is shown it by `notify`."""
        chain = Chain(parts)
        for number, piece in enumerate(data):
            chain.write(number, piece)
        self._chains.append(chain)
        count = len(parts)
        head = self.library.rig_add(
            queue,
            count,
            (c_uint64 * count)(*chain.addresses),
            (c_uint32 * count)(*(part.length for part in parts)),
            (c_bool * count)(*(part.written for part in parts)),
        )
        return head, chain

    def notify(self, queue: int) -> None:
        self.library.rig_notify(queue)

    def used(self, queue: int) -> tuple[int, int]:
        """How many chains the driver has back, and the used length of the last one."""
        length = c_uint32()
        return self.library.rig_used(queue, ctypes.byref(length)), length.value

    def told(self, queue: int) -> int:
        """How often the driver was called."""
        return int(self.library.rig_told(queue))

    def shown(self, queue: int) -> int:
        """How many chains the server was shown."""
        return int(self.library.rig_shown(queue))

    def descriptors(self, queue: int, head: int) -> list[int]:
        """The lengths of a chain's descriptors that the server sees."""
        found = []
        address, length = c_uint64(), c_uint32()
        at = head
        while at >= 0:
            at = self.library.rig_descriptor(queue, at, ctypes.byref(address), ctypes.byref(length))
            found.append(length.value)
        return found

    def address(self, queue: int, head: int) -> int:
        """Where the server finds a chain's first descriptor."""
        address, length = c_uint64(), c_uint32()
        self.library.rig_descriptor(queue, head, ctypes.byref(address), ctypes.byref(length))
        return address.value

    def serve(self, queue: int, head: int, length: int) -> None:
        """The server uses a chain, and an interrupt says so."""
        self.library.rig_use(queue, head, length)
        self.library.rig_complete(queue)

    def use(self, queue: int, head: int, length: int) -> None:
        """The server uses a chain, which nobody has heard of yet."""
        self.library.rig_use(queue, head, length)

    def restart(self, queue: int, statuses: Sequence[int]) -> tuple[int, list[bytes]]:
        """Another server comes, which serves what the driver has it serve before it has the ring, each time with the
        next of the statuses; what came of it, and what it was asked."""
        count = len(statuses)
        asked = (ctypes.c_char * 64 * count)()
        lengths = (c_uint32 * count)()
        err = self.library.rig_restart(queue, count, (ctypes.c_uint8 * count)(*statuses), asked, lengths)
        return err, [asked[n].raw[: lengths[n]] for n in range(count) if lengths[n]]

    def answer(self, queue: int, head: int, length: int, *, after: int) -> None:
        """The server uses a chain when the driver has looked at its ring so often, and let nobody else run."""
        self.library.rig_answer(c_uint64(after), queue, head, length)

    @property
    def looked(self) -> int:
        """How often a driver has looked so, a microsecond each time."""
        return int(self.library.rig_relaxed())

    @property
    def broken(self) -> str:
        """What is said to be wrong with the connection, which is to be ended for that."""
        return str(self.library.rig_broken().decode())

    def pass_time(self, jiffies: int) -> int:
        """How many timers ran in that time."""
        return int(self.library.rig_pass(jiffies))

    def count(self, what: str) -> int:
        return int(self.library.rig_count(COUNTS.index(what)))

    @property
    def messages(self) -> str:
        return str(self.library.rig_messages().decode())


@contextmanager
def rig(
    library: ctypes.CDLL,
    device: int,
    queues: int,
    size: int = 256,
    *,
    features: int = 0,
    window: int = 16 << 20,
    shared: bool = True,
    pool_kib: int = 1024,
) -> Iterator[Rig]:
    """A rig; at its end nothing may be mapped."""
    assert library.rig_begin(device, c_uint64(features), queues, size, c_uint64(window), c_bool(shared), pool_kib) == 0
    made = Rig(library)
    yield made
    assert library.rig_end() == 0
