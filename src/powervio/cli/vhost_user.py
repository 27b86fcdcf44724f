"""`powervio vhost-user`: one device for a virtual machine, by the conventions of QEMU's vhost-user back ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import click
import msgspec

from powervio.cli.console import Keys, raw_terminal
from powervio.cli.main import Options
from powervio.system import vhost_user as system
from powervio.system.explain import expected
from powervio.system.section import AdapterSection
from powervio.system.types import DeviceType
from powervio.system.vhost_user import (
    FORMATS,
    IDENTITIES,
    MOST_FIDS,
    BackEndOptions,
    BlockOptions,
    Identity,
    Limits,
    Share,
)

BLOCK_CAPABILITIES = {"type": "block", "features": ["read-only", "blk-file"]}


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every device."""
    for option in (
        click.option(
            "--access-platform",
            is_flag=True,
            help="Offer ACCESS_PLATFORM, for guests behind a virtual IOMMU (QEMU: iommu_platform=on).",
        ),
        click.option("--packed", is_flag=True, help="Offer packed rings (QEMU: packed=on)."),
        click.option(
            "--spin-us",
            type=click.IntRange(0, 1_000_000),
            default=0,
            show_default=True,
            help="Look at empty rings for so many microseconds before sleeping.",
        ),
        click.option("--print-capabilities", is_flag=True, help="Print what this is, as JSON, and end."),
        click.option("--fd", type=click.IntRange(0), help="Serve over this socket, connected or listening, instead."),
        click.option("--socket-path", type=click.Path(dir_okay=False), help="Listen at this Unix socket."),
    ):
        command = option(command)
    return command


def _where(socket_path: str | None, fd: int | None) -> None:
    if (socket_path is None) is (fd is None):
        raise click.UsageError("expected one of --socket-path and --fd")


def _back_end_options(spin_us: int, packed: bool, access_platform: bool) -> BackEndOptions:
    return BackEndOptions(packed=packed, platform=access_platform, spin=spin_us / 1e6)


def _ready(what: str, socket_path: str | None, fd: int | None) -> Callable[[], None]:
    where = socket_path if socket_path is not None else f"descriptor {fd}"
    return lambda: click.echo(f"{what}: serving at {where}; Ctrl-C or SIGTERM ends it", err=True)


class DeviceGroup(click.Group):
    """Commands of their own, and one for each row of the table of device types that serves alone."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names."""
        return [*_COMMANDS, *system.rows()]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name in _COMMANDS:
            return _COMMANDS[name]
        row = system.rows().get(name)
        return None if row is None else _command_of(row)


@click.group(cls=DeviceGroup)
@click.pass_obj
def vhost_user(options: Options) -> None:
    """Serve a device to a virtual machine over a vhost-user socket, until SIGTERM or Ctrl-C.

    QEMU: -object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m
    -chardev socket,id=c,path=SOCKET,reconnect=1 -device vhost-user-blk-pci,chardev=c
    or, for a network, -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n
    """
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


@vhost_user.command()
@_common
@click.option("--image", "--blk-file", "image", help="An image or block device, or an nbd:// or nbd+unix:// URI.")
@click.option("--format", "image_format", type=click.Choice(["raw", *FORMATS]), help="Of the image; raw if not given.")
@click.option("--readonly", "--read-only", "readonly", is_flag=True, help="Refuse writes.")
@click.option("--direct", is_flag=True, help="Go around the page cache (O_DIRECT).")
@click.option(
    "--mmap/--no-mmap",
    "map_file",
    default=None,
    help="Map the image: fewer calls, but a page that is not in memory holds up all requests. Files in a tmpfs are"
    " mapped if neither is given.",
)
@click.option("--queues", type=click.IntRange(1, 256), default=1, show_default=True, help="Request queues.")
@click.option("--queue-size", type=click.IntRange(4, 1024), default=128, show_default=True, help="Entries of each.")
@click.option("--bytes-per-second", type=click.IntRange(1), help="Most bytes of reads and writes; what is over waits.")
@click.option("--requests-per-second", type=click.IntRange(1), help="Most requests; what is over waits.")
@click.option("--burst-bytes", type=click.IntRange(1), help="Bytes at once after a pause.")
@click.option("--burst-requests", type=click.IntRange(1), help="Requests at once after a pause.")
@click.option("--serial", default="", help="What the guest reads as the disk's serial number, up to 20 characters.")
def block(
    socket_path: str | None,
    fd: int | None,
    print_capabilities: bool,
    spin_us: int,
    packed: bool,
    access_platform: bool,
    image: str | None,
    image_format: str | None,
    readonly: bool,
    direct: bool,
    map_file: bool | None,
    queues: int,
    queue_size: int,
    bytes_per_second: int | None,
    requests_per_second: int | None,
    burst_bytes: int | None,
    burst_requests: int | None,
    serial: str,
) -> None:
    """Serve a disk."""
    if print_capabilities:
        click.echo(json.dumps(BLOCK_CAPABILITIES))
        return
    _where(socket_path, fd)
    if image is None:
        raise click.UsageError("expected --image FILE")
    limits = Limits(bytes_per_second, requests_per_second, burst_bytes, burst_requests)
    shape = BlockOptions(
        serial=serial,
        read_only=readonly,
        queues=queues,
        queue_size=queue_size,
        limits=None if limits == Limits() else limits,
    )
    device, backing = system.open_block(image, shape, image_format=image_format, direct=direct, map_file=map_file)
    try:
        system.serve(
            device,
            path=socket_path,
            fd=fd,
            options=_back_end_options(spin_us, packed, access_platform),
            backing=backing,
            on_ready=_ready(image, socket_path, fd),
        )
    finally:
        backing.close()


@vhost_user.command()
@_common
@click.option("--tap", metavar="NAME", help="A TAP interface; it is made, for as long as this runs, if there is none.")
@click.option("--loopback", is_flag=True, help="Give every frame back to the guest, for measurements.")
@click.option("--mac", metavar="ADDRESS", help="Of the guest's adapter; made up if not given. QEMU has its own.")
@click.option("--mtu", type=click.IntRange(68, 65535), help="Bytes; the TAP's if not given, or 1500.")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="SOCKET[,pvid=N][,vlans=N+N][,mac=ADDRESS]",
    help="A port of a switch, served at a socket of its own; several are one network.",
)
@click.option("--queues", type=click.IntRange(1, 128), default=1, show_default=True, help="Pairs of queues at most.")
@click.option("--in-order", is_flag=True, help="Offer IN_ORDER.")
@click.option("--no-indirect", is_flag=True, help="Offer no INDIRECT_DESC: for DPDK 22.11 with packed rings.")
def net(
    socket_path: str | None,
    fd: int | None,
    print_capabilities: bool,
    spin_us: int,
    packed: bool,
    access_platform: bool,
    tap: str | None,
    loopback: bool,
    mac: str | None,
    mtu: int | None,
    ports: tuple[str, ...],
    queues: int,
    in_order: bool,
    no_indirect: bool,
) -> None:
    """Serve a network adapter, or with --port several that are joined by a switch. What was lost is told at the end.

    Ports hear each other in the VLANs that both are in: their own one (pvid, 1 if not given), whose frames have no tag
    there, and others (vlans), whose frames have. A port with an address sends from no other.
    """
    if print_capabilities:
        click.echo(json.dumps({"type": "net", "features": []}))
        return
    options = replace(_back_end_options(spin_us, packed, access_platform), indirect=not no_indirect, in_order=in_order)
    if ports:
        if socket_path is not None or fd is not None or tap is not None or loopback or mac is not None:
            raise click.UsageError("expected --port, or one adapter with --socket-path or --fd")
        _serve_ports(ports, options, mtu or 1500, queues)
        return
    _where(socket_path, fd)
    if (tap is None) is not loopback:
        raise click.UsageError("expected one of --tap NAME and --loopback, or --port")
    device = system.open_net(tap, mac=mac, mtu=mtu, pairs=queues)
    try:
        system.serve(
            device,
            path=socket_path,
            fd=fd,
            options=options,
            on_ready=_ready(f"network at {device.port.name}, MTU {device.mtu}", socket_path, fd),
        )
    finally:
        device.close()
        for line in device.report():
            click.echo(line, err=True)


def _serve_ports(ports: tuple[str, ...], options: BackEndOptions, mtu: int, pairs: int) -> None:
    declared = [system.SwitchedPort.parse(port) for port in ports]
    switch = system.NetSwitch(declared, mtu=mtu, pairs=pairs, spin=options.spin)
    try:
        system.serve_switch(
            switch, options=options, on_ready=_ready(f"switch of {len(ports)} ports", ", ".join(switch.paths), None)
        )
    finally:
        switch.close()
        for line in switch.report():
            click.echo(line, err=True)


@vhost_user.command()
@_common
@click.option("--console-socket", type=click.Path(dir_okay=False), help="A Unix socket where operators attach.")
@click.option("--exec", "command", help="A program that reads what the guest writes and writes what it reads.")
@click.option("--port", "ports", multiple=True, metavar="NAME=SOCKET", help="A further stream, at a socket of its own.")
def console(
    socket_path: str | None,
    fd: int | None,
    print_capabilities: bool,
    spin_us: int,
    packed: bool,
    access_platform: bool,
    console_socket: str | None,
    command: str | None,
    ports: tuple[str, ...],
) -> None:
    """Serve a console, to standard input and output if nothing else is said.

    On a terminal, `~.` at the start of a line, or Ctrl-], ends it. One operator at a time is attached to a socket; what
    the guest writes meanwhile is kept, the newest 64 KiB of it.
    """
    if print_capabilities:
        click.echo(json.dumps({"type": "console", "features": []}))
        return
    _where(socket_path, fd)
    if console_socket is not None and command is not None:
        raise click.UsageError("expected one of --console-socket and --exec")
    streams = dict(port.partition("=")[::2] for port in ports)
    if len(streams) < len(ports) or not all(streams.values()):
        raise click.UsageError("expected --port NAME=SOCKET, each name once")
    ends = system.ConsoleEnds(listen=console_socket, command=command, ports=streams)
    serve = partial(
        system.serve, ends.device, path=socket_path, fd=fd, options=_back_end_options(spin_us, packed, access_platform)
    )
    if console_socket is not None or command is not None:
        serve(attach=ends.attach, on_ready=_ready("console", socket_path, fd))
        return
    with raw_terminal() as is_terminal:
        if not is_terminal:
            serve(attach=ends.attach, on_ready=_ready("console", socket_path, fd))
            return

        def tell_size(*_: object) -> None:
            with suppress(OSError):
                ends.resize(*os.get_terminal_size(sys.stdin.fileno()))

        def ready() -> None:
            click.echo(
                f"console: serving at {socket_path or fd}; ~. at the start of a line, or Ctrl-], ends it\r", err=True
            )
            tell_size()

        before = signal.signal(signal.SIGWINCH, tell_size)
        try:
            serve(attach=partial(ends.attach, typed=Keys().pass_on), on_ready=ready)
        finally:
            signal.signal(signal.SIGWINCH, before)


@vhost_user.command()
@_common
@click.argument("folder", required=False, type=click.Path(file_okay=False))
@click.option("--tag", help="What the guest mounts it by; the folder's name if not given.")
@click.option("--readonly", "--read-only", "readonly", is_flag=True, help="Let nothing be changed.")
@click.option(
    "--identity",
    type=click.Choice(IDENTITIES),
    default="passthrough",
    show_default=True,
    help="Who acts: the guest's users as they are, all as one user, or all as this process with owners in attributes.",
)
@click.option("--squash-uid", type=click.IntRange(0), help="With squash, the user that all are; nobody if not given.")
@click.option("--squash-gid", type=click.IntRange(0), help="The same of the group.")
@click.option("--translate-uid", multiple=True, metavar="GUEST:HOST:COUNT", help="Users of the guest, by ranges.")
@click.option("--translate-gid", multiple=True, metavar="GUEST:HOST:COUNT", help="The same of groups.")
@click.option(
    "--fids",
    type=click.IntRange(1, 1 << 30),
    default=MOST_FIDS,
    show_default=True,
    help="Files that the guest may have in hand at a time; a million takes half a gigabyte.",
)
def p9(
    socket_path: str | None,
    fd: int | None,
    print_capabilities: bool,
    spin_us: int,
    packed: bool,
    access_platform: bool,
    folder: str | None,
    tag: str | None,
    readonly: bool,
    identity: Identity,
    squash_uid: int | None,
    squash_gid: int | None,
    translate_uid: tuple[str, ...],
    translate_gid: tuple[str, ...],
    fids: int,
) -> None:
    """Serve a folder by 9P, to whoever has a vhost-user front end for it (QEMU 7.2 has not)."""
    if print_capabilities:
        click.echo(json.dumps({"type": "p9", "features": []}))
        return
    _where(socket_path, fd)
    if folder is None:
        raise click.UsageError("expected FOLDER")
    share = Share(
        folder,
        os.path.basename(os.path.abspath(folder)) if tag is None else tag,
        readonly,
        identity,
        squash_uid,
        squash_gid,
        translate_uid,
        translate_gid,
        fids,
    )
    device = system.open_share(share)
    try:
        system.serve(
            device,
            path=socket_path,
            fd=fd,
            options=_back_end_options(spin_us, packed, access_platform),
            on_ready=_ready(f"{folder} as {share.tag}", socket_path, fd),
        )
    finally:
        device.close()


_COMMANDS: dict[str, click.Command] = {"block": block, "net": net, "console": console, "p9": p9}


def _command_of(row: DeviceType) -> click.Command:
    """The command of a row: its options are those of `[[lpar.SECTION]]` that are the device's."""

    def run(
        socket_path: str | None,
        fd: int | None,
        print_capabilities: bool,
        spin_us: int,
        packed: bool,
        access_platform: bool,
        **given: Any,
    ) -> None:
        if print_capabilities:
            click.echo(json.dumps({"type": row.section, "features": []}))
            return
        _where(socket_path, fd)
        fields = {name: msgspec.convert(value, hints[name], strict=False) for name, value in given.items() if value}
        system.serve(
            system.make_device(row, fields),
            path=socket_path,
            fd=fd,
            options=_back_end_options(spin_us, packed, access_platform),
            on_ready=_ready(row.name, socket_path, fd),
        )

    common = {field.name for field in msgspec.structs.fields(AdapterSection)}
    own = [field for field in msgspec.structs.fields(row.options) if field.name not in common]
    hints = {field.name: field.type for field in own}
    command: Callable[..., None] = run
    for field in reversed(own):
        word = field.name.replace("_", "-")
        text = expected(row.options, field.name)
        command = click.option(f"--{word}", field.name, metavar="VALUE", help=f"{text[:1].upper()}{text[1:]}.")(command)
    return click.command(row.section, help=f"Serve the device type {row.name}.")(_common(command))
