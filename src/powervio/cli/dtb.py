"""`powervio dtb`: the device tree of a partition."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from powervio.errors import LocalError
from powervio.system import control


@click.command()
@click.argument("partition")
@click.option("-o", "--output", type=click.Path(), help="Write to this file instead of standard output.")
@click.option("--file", type=click.Path(), help="What PARTITION of this system file would start with.")
@click.option("--system", "name", metavar="NAME", help="The running system, if there are several.")
def dtb(partition: str, output: str | None, file: str | None, name: str | None) -> None:
    """Print the flattened device tree of PARTITION, a client or a VIO server, as it is now.

    `powervio dtb client1 | dtc -I dtb -O dts` makes it readable.
    """
    if file is not None and name is not None:
        raise click.UsageError("--file and --system exclude each other.")
    if output is None and sys.stdout.isatty():
        raise LocalError(f"a device tree is not for a terminal: `powervio dtb {partition} | dtc -I dtb -O dts`, or -o")
    if file is not None:
        from powervio.system.load import load
        from powervio.system.plan import tree_of_declared

        blob = tree_of_declared(load(file), partition)
    else:
        answer = control.ask(control.choose(name), "dtb", {"partition": partition})
        blob = base64.b64decode(answer["dtb"])
    if output is None:
        sys.stdout.buffer.write(blob)
        return
    try:
        Path(output).write_bytes(blob)
    except OSError as error:
        raise LocalError(f"{output}: {error.strerror}") from error
