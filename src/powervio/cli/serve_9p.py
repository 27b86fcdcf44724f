"""`powervio serve-9p`: a directory of this machine for clients of 9P2000.L."""

from __future__ import annotations

import logging

import click

from powervio.cli.main import Options
from powervio.system import serve_p9 as system


@click.command("serve-9p")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--listen",
    multiple=True,
    required=True,
    metavar="ADDRESS",
    help="unix:PATH or tcp:HOST:PORT; several may be given. Who reaches it says which user he is, and is believed.",
)
@click.option("--mode", default="600", show_default=True, metavar="OCTAL", help="Permissions of Unix sockets.")
@click.option("--readonly", is_flag=True, help="Refuse changes.")
@click.option(
    "--identity",
    type=click.Choice(system.IDENTITIES),
    default="passthrough",
    show_default=True,
    help="Users are whom they say they are, all act as one, or owners are kept in attributes of the files.",
)
@click.option("--squash-uid", type=click.IntRange(0), help="With --identity squash: the user that all act as.")
@click.option("--squash-gid", type=click.IntRange(0), help="With --identity squash: their group.")
@click.option("--translate-uid", multiple=True, metavar="CLIENT:HOST:COUNT", help="Users of the client as ours.")
@click.option("--translate-gid", multiple=True, metavar="CLIENT:HOST:COUNT", help="Groups of the client as ours.")
@click.option(
    "--msize", type=click.IntRange(4096, 1 << 20), default=1 << 20, show_default=True, help="Longest message in bytes."
)
@click.option(
    "--connections",
    type=click.IntRange(1, 65536),
    default=system.MOST_CONNECTIONS,
    show_default=True,
    help="Most at a time.",
)
@click.option(
    "--fids",
    type=click.IntRange(1, 1 << 30),
    default=system.MOST_FIDS,
    show_default=True,
    help="Most at a time, of all connections together; a million takes half a gigabyte.",
)
@click.pass_obj
def serve_9p(
    options: Options,
    directory: str,
    listen: tuple[str, ...],
    mode: str,
    readonly: bool,
    identity: str,
    squash_uid: int | None,
    squash_gid: int | None,
    translate_uid: tuple[str, ...],
    translate_gid: tuple[str, ...],
    msize: int,
    connections: int,
    fids: int,
) -> None:
    """Serve DIRECTORY by 9P2000.L, until SIGTERM or Ctrl-C.

    Linux mounts it with `mount -t 9p -o trans=unix,version=9p2000.L,msize=1048576 SOCKET MOUNTPOINT`, or over TCP with
    `trans=tcp,port=PORT,...  HOST`; without the kernel's 9p, `powervio mount-9p` does. Only root can act as others.
    """
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        permissions = int(mode, 8)
    except ValueError:
        permissions = -1
    if not 0 <= permissions <= 0o777:
        raise click.UsageError(f"--mode {mode}: expected octal digits up to 777")
    share = system.TreeOptions(
        readonly=readonly,
        identity=identity,
        squash_uid=squash_uid,
        squash_gid=squash_gid,
        translate_uid=tuple(map(system.range_of, translate_uid)),
        translate_gid=tuple(map(system.range_of, translate_gid)),
    )
    done = system.run(
        directory,
        listen,
        share,
        msize=msize,
        mode=permissions,
        most_connections=connections,
        most_fids=fids,
        on_ready=lambda places: click.echo(
            f"{directory}: served at {' and '.join(places)}; Ctrl-C or SIGTERM ends it", err=True
        ),
    )
    click.echo(
        f"{done.connections} connections, {done.messages} messages, {done.received} bytes received, {done.sent} sent",
        err=True,
    )
