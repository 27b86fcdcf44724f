"""`powervio mount-9p`: a 9P server's share as a directory of this machine."""

from __future__ import annotations

import logging

import click

from powervio.cli.main import Options
from powervio.system import mount_p9 as system


@click.command("mount-9p")
@click.argument("server")
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--share", default="", metavar="NAME", help="What to attach to (aname); the server's only one if empty.")
@click.option(
    "--access",
    default="user",
    show_default=True,
    metavar="user|any|UID",
    help="As whom the server acts: as each user of the mount, as who mounts, or as one user for everybody.",
)
@click.option("--user-name", default="", metavar="NAME", help="A name for servers that want one (uname).")
@click.option("--readonly", is_flag=True, help="Refuse changes.")
@click.option("--private", is_flag=True, help="Let no other user in, not even root.")
@click.option(
    "--cache",
    "timeout",
    type=click.FloatRange(0, 86400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long names and attributes may be older than the server's.",
)
@click.option(
    "--msize", type=click.IntRange(8192, 1 << 20), default=1 << 20, show_default=True, help="Longest message in bytes."
)
@click.option(
    "--patience",
    type=click.FloatRange(0.1, 86400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long programs wait for a server that is not there, before they get EIO.",
)
@click.pass_obj
def mount_9p(
    options: Options,
    server: str,
    directory: str,
    share: str,
    access: str,
    user_name: str,
    readonly: bool,
    private: bool,
    timeout: float,
    msize: int,
    patience: float,
) -> None:
    """Mount what a 9P2000.L server serves at DIRECTORY, until SIGTERM or Ctrl-C, or until it is unmounted.

    SERVER is the path of a Unix socket, unix:PATH, or tcp:HOST:PORT. When the server is restarted, open files go on if
    they are still the same; else they give ESTALE. Mounting takes root.
    """
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if access not in ("user", "any") and not access.isdigit():
        raise click.UsageError(f"--access {access}: expected user, any or the number of a user")
    system.run(
        server,
        directory,
        system.MountOptions(
            share=share,
            user=system.user_of(access),
            user_name=user_name,
            readonly=readonly,
            everybody=not private,
            timeout=timeout,
        ),
        msize=msize,
        patience=patience,
        on_ready=lambda: click.echo(f"{server}: mounted at {directory}; Ctrl-C or SIGTERM ends it", err=True),
    )
