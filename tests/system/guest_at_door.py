"""A stock Linux guest at a door of `powervio up`, whose command says when the host is to do something to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from powervio.boot import module, run
from powervio.boot.guest import Terminal
from powervio.boot.machine import Arch, find
from powervio.boot.processes import Disk
from powervio.boot.programs import GUEST_IO
from powervio.boot.qemu import MEMORY
from powervio.boot.transport import Served, Transport

from .harness import House

MIB = 1 << 20
BLOCK = 4096
MARK = "HOST "
"""What a line of the guest's begins with that names a happening."""

SCRIPT = """\
exec 2>&1
fail() { echo "FAILED: $*"; dmesg | tail -n 30; exit 1; }
until_so() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 600 ] || fail "waited for $*"; sleep 0.1; done; }
quiet() { # no error in the kernel's log, and no trace of anything
    dmesg -r | grep -E '^<[0-3]>|I/O error|WARNING|BUG|Call Trace|blocked for more' && fail "the kernel's log after $1"
    true
}
state() { cat /sys/bus/virtio_vio/devices/*/$1; }
dmesg -c >/dev/null
"""
"""What all commands begin with: shell functions."""


def declare(house: House, arch: str, disks: Sequence[tuple[str, int]], *, disk: str = "", vios: str = "") -> str:
    """A system with a door for a guest with these images; the file's name."""
    text = f'[[vios]]\nname = "vios1"\n{vios}\n[[lpar]]\nname = "guest1"\nguest = "door"\narch = "{arch}"\n'
    text += 'memory = "256M"\n'
    for image, size in disks:
        house.image(image, size)
        text += f'[[lpar.disk]]\nvios = "vios1"\nimage = "{image}"\n{disk}\n'
    (house.folder / "s.toml").write_text(text)
    return "s.toml"


def boot(
    house: House,
    cache: Path,
    command: str,
    happenings: Mapping[str, Callable[[], object]],
    *,
    packages: Sequence[str] = (),
    options: Sequence[str] = (),
    cpus: int = 1,
    timeout: float = 200,
) -> tuple[int, str]:
    """Boot a guest at the door; the status of its command, and what that said.

    `happenings` are called in another thread, each when the guest has said its name. To be called in the main thread.
    """
    found = house.ps()
    door = next(lpar["door"] for lpar in found["lpar"] if lpar["door"])
    images = [adapter["image"] for adapter in found["adapters"] if adapter["role"] == "client" and "image" in adapter]
    memory = 256 * MIB

    @contextmanager
    def serve(arch: Arch, size: int, disks: Sequence[Disk]) -> Iterator[Served]:
        place = f"memory-backend-file,id={MEMORY},size={memory},mem-path={door['memory_path']},share=on"
        words = ["-chardev", f"socket,path={door['path']},id=gate", "-smp", str(cpus)]
        words += ["-device", f"ivshmem-doorbell,chardev=gate,vectors={door['vectors']}"]
        yield Served(place, words, (), (), lambda: None)

    reading, writing = os.pipe()
    said: list[str] = []
    failures: list[BaseException] = []

    def listen() -> None:
        with os.fdopen(reading, errors="replace") as lines:
            for line in lines:
                said.append(line)
                if line.startswith(MARK) and not failures:
                    try:
                        happenings[line.removeprefix(MARK).strip()]()
                    except BaseException as error:
                        failures.append(error)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    steps: list[str] = []
    plan = run.Plan(
        arch=find(door["arch"]),
        memory=memory,
        cache=cache,
        transport=Transport(serve, module.sources),
        disks=tuple(Disk(image) for image in images),
        command=SCRIPT + command,
        packages=tuple(packages),
        timeout=timeout,
        programs=(GUEST_IO,),
        driver_options=tuple(options),
    )
    try:
        status = run.run(plan, steps.append, Terminal(0, writing), errors=writing)
    except BaseException as error:
        error.add_note("".join(said))
        for failure in failures:
            error.add_note(f"a happening failed: {failure!r}")
        raise
    finally:
        os.close(writing)
        thread.join(60)
    text = "".join(said)
    if failures:
        failures[0].add_note(text)
        raise failures[0]
    return status, text
