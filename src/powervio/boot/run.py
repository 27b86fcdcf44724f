"""`powervio boot`, put together: what is fetched, started, waited for, and in which order it ends."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from powervio.boot import initramfs, module, qemu, root
from powervio.boot.cache import Cache, Kernel
from powervio.boot.guest import Guest, GuestFailed, Terminal
from powervio.boot.machine import MIB, Arch
from powervio.boot.processes import Disk
from powervio.boot.programs import Program
from powervio.boot.transport import Transport
from powervio.errors import LocalError

KERNEL_MEMORY = 64 * MIB
"""What a kernel has for itself before it has unpacked its root file system."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to boot."""

    arch: Arch
    memory: int
    """Bytes."""
    cache: Path
    transport: Transport
    """How it reaches its disks."""
    disks: tuple[Disk, ...] = ()
    command: str | None = None
    """For the guest's shell; None is its console on `terminal`."""
    deb: Path | None = None
    """The kernel's package; None is Debian's newest when the cache was filled."""
    packages: tuple[str, ...] = ()
    """Debian packages that it has beside busybox."""
    refresh: bool = False
    """Whether to fill the cache anew."""
    timeout: float | None = None
    """Seconds from power on to the end of the command, or of an interactive guest."""
    programs: tuple[Program, ...] = ()
    """What the guest has in /bin beside busybox."""
    driver_options: tuple[str, ...] = ()
    """Parameters of the driver that the transport brings, NAME=VALUE."""


def run(plan: Plan, say: Callable[[str], None], terminal: Terminal, errors: int = 2) -> int:
    """Boot a guest; the exit status of its command, 0 without one. `say` hears of each step.

    A command's output goes to `terminal.writing` and `errors`. To be called in the main thread: QEMU and the back ends
    end with the thread that starts them. Raises `LocalError`; then the guest's console is in a file that it names.
    """
    program = shutil.which(plan.arch.qemu)
    if program is None:
        raise LocalError(f"{plan.arch.qemu} is missing: apt-get install {plan.arch.qemu_package}")
    cache = Cache(plan.cache, say)
    sources = None if plan.transport.driver is None else plan.transport.driver()
    kernel, busybox = cache.get(plan.arch, deb=plan.deb, refresh=plan.refresh, sources=sources)
    module.check_options(kernel.modules, plan.driver_options)
    programs = [cache.program(plan.arch, each) for each in plan.programs]
    packages = cache.get_packages(plan.arch, plan.packages, refresh=plan.refresh) if plan.packages else None
    log = cache.new_log()
    try:
        status = _boot(plan, program, kernel, [busybox, *programs], packages, log, say, terminal, errors)
    except GuestFailed as error:
        raise GuestFailed(f"{error}\nits console is in {log}") from error
    except BaseException:
        log.unlink(missing_ok=True)
        raise
    log.unlink(missing_ok=True)
    return status


def _boot(
    plan: Plan,
    program: str,
    kernel: Kernel,
    programs: Sequence[Path],
    packages: Path | None,
    log: Path,
    say: Callable[[str], None],
    terminal: Terminal,
    errors: int,
) -> int:
    token = secrets.token_hex(16).encode()
    adapters = 0 if plan.transport.driver is None else len(plan.disks)
    task = root.Task(token, plan.command, os.environ.get("TERM", "dumb"), adapters, plan.driver_options)
    with ExitStack() as undo:
        packed = _archive(task, kernel, programs, packages)
        _check_room(packed, plan)
        archive = _in_memory(packed)
        undo.callback(os.close, archive)
        served = undo.enter_context(plan.transport.serve(plan.arch, plan.memory, plan.disks))
        words = [plan.arch.name, f"Linux {kernel.version}", f"{plan.memory >> 20} MiB"]
        say(f"starting a guest: {', '.join([*words, *(_about(disk) for disk in plan.disks)])}")
        guest = Guest(
            lambda channels: qemu.command(
                plan.arch,
                program=program,
                image=str(kernel.image),
                initramfs=f"/proc/self/fd/{archive}",
                memory=plan.memory,
                backend=served.memory,
                channels=channels,
                options=served.options,
            ),
            pass_fds=[archive, *served.pass_fds],
            watched=served.watched,
            token=token,
            log=log,
        )
        undo.callback(guest.close)
        served.handed_over()
        seconds = guest.wait_until_up(plan.timeout)
        status = 0
        if plan.command is None:
            say(f"the guest is up after {seconds:.1f} s; poweroff or exit ends it")
            guest.converse(terminal, plan.timeout)
        else:
            say(f"the guest is up after {seconds:.1f} s; running the command")
            status = guest.run(terminal.writing, errors, plan.timeout)
    return status


def _archive(task: root.Task, kernel: Kernel, programs: Sequence[Path], packages: Path | None) -> bytes:
    """Of `programs` the first is busybox."""
    try:
        busybox, *others = [(path.name, path.read_bytes()) for path in programs]
        modules = [(path.name, path.read_bytes()) for path in kernel.modules]
        packed = b"" if packages is None else packages.read_bytes()
        return packed + initramfs.pack(root.nodes(task, busybox[1], modules, others))
    except OSError as error:
        raise LocalError(f"cache {error.filename}: {error.strerror}; --refresh makes it anew") from error


def _check_room(archive: bytes, plan: Plan) -> None:
    """See that the kernel can unpack it: into half of the memory that itself and the archive leave."""
    size = initramfs.room(archive, plan.arch.page)
    need = KERNEL_MEMORY + len(archive) + 2 * size
    if need > plan.memory:
        step = plan.arch.memory_step
        raise LocalError(
            f"the guest's root file system has {-(-size // MIB)} MiB and does not fit in {plan.memory // MIB} MiB of"
            f" memory: it needs {-(-need // step) * step // MIB}M at least"
        )


def _in_memory(data: bytes) -> int:
    """A descriptor of a file that is nowhere in the file system, so that nothing can be left behind."""
    fd = os.memfd_create("initramfs")
    with os.fdopen(os.dup(fd), "wb") as stream:
        stream.write(data)
    return fd


def _about(disk: Disk) -> str:
    return f"{disk.image} (read-only)" if disk.read_only else disk.image
