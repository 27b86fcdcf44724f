"""`powervio boot`: a stock Linux guest with disks of ours."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from powervio.boot import cache, machine, programs, run
from powervio.boot.guest import Terminal
from powervio.boot.processes import Disk
from powervio.boot.qemu import parse_memory
from powervio.boot.transport import VHOST_USER
from powervio.cli import server
from powervio.cli.console import Keys, raw_terminal
from powervio.system.booted import CRQ, BootShare, crq_with

TRANSPORTS = {"crq": CRQ, "vhost-user": VHOST_USER}

COMMAND_LIMIT = 3600.0
"""Seconds for a guest that nobody at a terminal watches, if --timeout says nothing else."""


@click.command()
@click.option(
    "--arch",
    metavar="|".join(machine.ARCHES),
    help="The guest's architecture; this machine's if it is one of them, or x86_64.",
)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="FILE[,readonly][,format=FORMAT]",
    help="A disk of the guest; again for /dev/vdb, and so on. FILE is an image, a block device, or an"
    " nbd:// or nbd+unix:// URI. FORMAT is raw, qcow2, vmdk or vhdx; FILE.qcow2 and the like need not say it.",
)
@click.option("--exec", "command", metavar="CMD", help="Run this in the guest's shell, and end. Without it: a console.")
@click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="NAME",
    help="A Debian package whose programs the guest has; again for more. What it depends on comes with it.",
)
@click.option("--memory", default="512M", show_default=True, metavar="SIZE", help="The guest's memory.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="From power on to the end; 3600 if nothing else is said, and none for a console on a terminal.",
)
@click.option(
    "--kernel",
    default="auto",
    show_default=True,
    metavar="DEB|auto",
    help="A package of a Debian kernel; auto is the newest when the cache was filled.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Fetch the newest kernel, busybox and packages, whatever the cache has; build the driver anew.",
)
@click.option(
    "--cache",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where kernels are kept; powervio/boot in the user's cache folder if not given.",
)
@click.option(
    "--transport",
    type=click.Choice(list(TRANSPORTS)),
    default="crq",
    show_default=True,
    help="How the guest reaches its disks. crq: as on PowerVM, virtio over CRQ and TCEs by the driver virtio_vio, which"
    " is built for its kernel (gcc and make); hypervisor and VIO server are in this process. vhost-user: the kernel's"
    " own driver at QEMU's vhost-user-blk, with a process of ours for each disk.",
)
@click.option(
    "--driver-option",
    "driver_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter that virtio_vio is loaded with, such as shared_tce=0; may be repeated.",
)
@click.option(
    "--tool",
    "tools",
    multiple=True,
    type=click.Choice(list(programs.ALL)),
    help="Have this program in the guest's /bin. guest_io: random reads, and writes that can be checked, with many in"
    " flight and past the page cache; its first lines in boot/guest_io.c say how it is called.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="FOLDER[,tag=TAG][,readonly]",
    help="A folder of this host, with --transport crq: mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 TAG"
    " /mnt. The tag is the folder's name if none is given. May be repeated.",
)
@click.option("--system", "name", metavar="NAME", help="Of VIOS: the running system, if there are several.")
@click.argument("vios", required=False)
def boot(
    arch: str | None,
    disks: tuple[str, ...],
    command: str | None,
    packages: tuple[str, ...],
    memory: str,
    timeout: float | None,
    kernel: str,
    refresh: bool,
    folder: Path | None,
    transport: str,
    driver_options: tuple[str, ...],
    tools: tuple[str, ...],
    shares: tuple[str, ...],
    name: str | None,
    vios: str | None,
) -> int:
    """Boot a stock Debian kernel in QEMU, with disks that powervio serves.

    \b
      powervio boot --disk disk.img                       a shell; exit, poweroff or Ctrl-] ends it
      powervio boot --arch ppc64le --disk disk.img \\
          --exec 'mount /dev/vda /mnt && cat /mnt/file'   output and exit status are CMD's
      powervio boot --disk disk.img --package e2fsprogs \\
          --exec 'mkfs.ext4 -q /dev/vda'                  with programs of Debian packages

    Kernel, headers and busybox are packages of this machine's Debian sources, for the guest's architecture. They are
    fetched once, and nothing is installed; the guest's driver is built once. /mnt is there to mount at; the rest of the
    guest is busybox in memory, and is gone with it. Packages are unpacked beside it, without documentation and
    translations, and their installation scripts are not run; each set of them is fetched once.

    Exit status: that of CMD; 1 if the guest fails, and then the file of its console is named. Ctrl-C turns the guest
    off.

    With VIOS, the name of a VIO server that was terminated, it is the same as `powervio activate VIOS`.
    """
    if vios is not None:
        if os.path.exists(vios):
            raise click.UsageError(f"{vios} is a file; for a disk say --disk {vios}")
        server.start_again(vios, name)
        return 0
    if name is not None:
        raise click.UsageError("--system is for `powervio boot VIOS`")
    if shares and transport != "crq":
        raise click.UsageError("--share is for --transport crq: QEMU has no vhost-user front end for 9P")
    chosen = machine.find(arch or machine.of_this_machine())
    is_terminal = command is None and sys.stdin.isatty()
    if timeout is None and not is_terminal:
        timeout = COMMAND_LIMIT
    plan = run.Plan(
        arch=chosen,
        memory=parse_memory(memory, chosen),
        cache=folder or cache.default_folder(),
        transport=TRANSPORTS[transport] if not shares else crq_with([BootShare.parse(share) for share in shares]),
        disks=tuple(Disk.parse(disk) for disk in disks),
        command=command,
        packages=packages,
        deb=None if kernel == "auto" else Path(kernel),
        refresh=refresh,
        timeout=timeout,
        programs=tuple(programs.ALL[tool] for tool in tools),
        driver_options=driver_options,
    )
    sys.stdout.flush()
    typed = Keys().pass_on if is_terminal else None
    return run.run(plan, _steps(), Terminal(sys.stdin.fileno(), sys.stdout.fileno(), typed, raw_terminal))


def _steps() -> Callable[[str], None]:
    began = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"boot: {time.monotonic() - began:5.1f} s  {text}", err=True)

    return say
