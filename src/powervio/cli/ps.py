"""`powervio ps`: the adapters of a running system."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from powervio.system import control

if TYPE_CHECKING:
    from rich.console import Console

_TABLE_WIDTH = 72
"""Columns of a terminal below which the table is told line by line."""


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ps(name: str | None, as_json: bool) -> None:
    """List the adapters of a running system, NAME or the only one, and what they have done."""
    report = control.ask(control.choose(name), "ps")
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(report)


def show(report: dict[str, Any]) -> None:
    """Print `ps` for people: the clients' ends, which are the ones that users look at; each line names both.

    `copied` is what remote DMA moved, `engine` what the server's DMA engine did (redirected DMA).
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    system = report["system"]
    console.print(f"{escape(system['name'])}, process {system['pid']}, up for {_duration(system['seconds'])}")
    table = Table(
        "client",
        "slot",
        "type",
        "state",
        "served by",
        "requests",
        "hcalls",
        "copied",
        "engine",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number in (5, 6, 7, 8):
        table.columns[number].justify = "right"
    for vios in report["vios"]:
        if vios["state"] != "running":
            why = f": {vios['reason']}" if vios["reason"] else ""
            console.print(f"VIO server {vios['name']} is {vios['state']}{why}", markup=False)
        elif vios["process"]:
            console.print(f"VIO server {vios['name']}, process {vios['pid']}", markup=False)
    clients = [adapter for adapter in report["adapters"] if adapter["role"] == "client"]
    servers = {(entry["partition"], entry["slot"]): entry for entry in report["adapters"] if entry["role"] == "server"}
    for adapter in clients:
        partner = adapter["partner"]
        server = servers.get((partner["partition"], partner["slot"])) if partner else None
        calls = sum(sum(end["hcalls"].values()) for end in (adapter, server) if end)
        table.add_row(
            escape(adapter["partition"]),
            str(adapter["slot"]),
            adapter["type"],
            adapter["path"]["state"] if adapter.get("path") else adapter["state"],
            escape(f"{partner['partition']}/{partner['slot']}") if partner else "-",
            _count(adapter["requests"]),
            _count(calls),
            show_bytes(adapter["rdma_bytes"]),
            show_bytes(adapter["redirected_bytes"]),
        )
    if console.width >= _TABLE_WIDTH:
        console.print(table)
    else:
        for row in zip(*(column.cells for column in table.columns), strict=True):
            console.print()
            for column, cell in zip(table.columns, row, strict=True):
                console.print(f"{column.header}: {cell}", soft_wrap=True)
        console.print()
    for lpar in report["lpar"]:
        if lpar["linux"]:
            _show_linux(console, lpar["name"], lpar["linux"])
        elif lpar["door"]:
            _show_door(console, lpar["name"], lpar["door"])
    for sea in report["sea"]:
        _show_sea(console, sea)
    for port in report["ports"]:
        _show_port(console, port)
    for adapter in clients:
        path = adapter.get("path")
        if path and path["reason"]:
            name = f"{adapter['partition']}/{adapter['slot']}"
            console.print(f"{name}: {path['state']}: {path['reason']}", markup=False, soft_wrap=True)
        if path and not path["preferred"]:
            continue  # of the disk once is enough
        served = adapter.get("image") or adapter.get("socket")
        if served:
            what = f"{adapter['partition']}/{adapter['slot']}: {served}"
            if adapter.get("readonly"):
                what += " (readonly)"
            if path:
                others = sum((other.get("path") or {}).get("disk") == path["disk"] for other in clients)
                what += f" ({path['policy']}, {others} paths)"
            if adapter.get("format") not in (None, "raw"):
                what += f" ({adapter['format']})"
            console.print(what, markup=False, soft_wrap=True)
        partner = adapter["partner"]
        server = servers.get((partner["partition"], partner["slot"])) if partner else None
        if server and server.get("limits"):
            console.print(f"    {_limits(server)}", markup=False, soft_wrap=True)
        if adapter.get("net"):
            _show_net(console, adapter)
        if adapter.get("fs"):
            _show_fs(console, adapter)
        if adapter.get("nbd"):
            console.print(f"    nbd+unix:///?socket={adapter['nbd']}", markup=False, soft_wrap=True)
        if path and path["waiting"]:
            console.print(f"    {path['waiting']} requests wait for a path", markup=False, soft_wrap=True)
        if adapter["failure"] and adapter["state"] != "running":
            console.print(f"    {adapter['failure']}", markup=False, soft_wrap=True)


def _show_fs(console: Console, adapter: dict[str, Any]) -> None:
    """A share: what it is of, where it is mounted, and what was done."""
    entry = adapter["fs"]
    how = ", ".join(("readonly",) * entry["readonly"] + (entry["identity"],) * (entry["identity"] != "passthrough"))
    place = f", mounted at {entry['mount']}" if entry["mount"] else ""
    what = f"{entry['dir']} as {entry['tag']}{f' ({how})' if how else ''}"
    console.print(
        f"{adapter['partition']}/{adapter['slot']}: {what}{place}",
        markup=False,
        soft_wrap=True,
    )
    done = entry["counters"]
    console.print(
        f"    {_count(done['messages'])} messages, {show_bytes(done['bytes_read'])} read,"
        f" {show_bytes(done['bytes_written'])} written",
        markup=False,
        soft_wrap=True,
    )


def _show_net(console: Console, adapter: dict[str, Any]) -> None:
    """A network adapter: where it is, and what became of frames."""
    entry = adapter["net"]
    name = f"{adapter['partition']}/{adapter['slot']}"
    where = f"VLAN {entry['pvid']}{_tagged(entry)} of {entry['switch']}, {entry['mac']}"
    if entry["tap"]:
        where = f"{interface(entry['tap'], entry['netns'])}, {where}"
    unplugged = "" if entry["link"] else ", unplugged"
    console.print(f"{name}: {where}{unplugged}", markup=False, soft_wrap=True)
    driver = entry["driver"]
    if driver:
        lost = ", ".join(f"{_count(count)} {reason}" for reason, count in sorted(driver["lost"].items()))
        console.print(
            f"    sent {_count(driver['sent'])} frames, {show_bytes(driver['sent_bytes'])}; received"
            f" {_count(driver['received'])}, {show_bytes(driver['received_bytes'])}; lost {lost or 'none'}",
            markup=False,
            soft_wrap=True,
        )


def _show_sea(console: Console, sea: dict[str, Any]) -> None:
    """A Shared Ethernet Adapter: what it bridges, its state, and what became of frames."""
    facts = sea["facts"]
    state = "does not run" if facts is None else facts["state"]
    where = f"VLAN {sea['pvid']}{_tagged(sea)} of {sea['switch']}"
    console.print(f"{sea['name']} of {sea['vios']}: {state}, {where}", markup=False, soft_wrap=True)
    if facts is None:
        return
    uplinks = ", ".join(
        f"{interface(link['name'], sea['netns'])} ({'used' if link['used'] else 'up' if link['up'] else 'down'})"
        for link in facts["uplink"]
    )
    lost = sum(sum(facts[side]["dropped"].values()) for side in ("real", "virtual"))
    console.print(
        f"    {uplinks}; priority {facts['priority']}, mode {facts['mode']}; out {_count(facts['virtual']['bridged'])}"
        f" frames, in {_count(facts['real']['bridged'])}, not bridged {_count(lost)}",
        markup=False,
        soft_wrap=True,
    )


def _show_port(console: Console, port: dict[str, Any]) -> None:
    """A port for a virtual machine, and what to start QEMU with."""
    is_there = "a machine is there" if port["attached"] else "no machine is there"
    where = f"VLAN {port['pvid']}{_tagged(port)} of {port['switch']}, {port['mac']}"
    console.print(f"port {port['name']}: {port['socket']}, {where}, {is_there}", markup=False, soft_wrap=True)
    if not port["attached"]:
        options = [
            *("-chardev", f"socket,id={port['name']},path={port['socket']}"),
            *("-netdev", f"vhost-user,id=net-{port['name']},chardev={port['name']}"),
            *("-device", f"virtio-net-pci,netdev=net-{port['name']},mac={port['mac']}"),
        ]
        console.print(f"    {shlex.join(options)}, and memory that is shared", markup=False, soft_wrap=True)
        return
    lost = ", ".join(f"{_count(count)} {reason}" for reason, count in sorted(port["dropped"].items()))
    console.print(
        f"    sent {_count(port['sent'])} frames, {show_bytes(port['sent_bytes'])}; received"
        f" {_count(port['received'])}, {show_bytes(port['received_bytes'])}; lost {lost or 'none'}",
        markup=False,
        soft_wrap=True,
    )


def _tagged(entry: dict[str, Any]) -> str:
    return f" ({', '.join(map(str, entry['vlans']))} tagged)" if entry["vlans"] else ""


def interface(tap: str, netns: str | None) -> str:
    """An interface and where it is."""
    return tap if netns is None else f"{tap} in namespace {netns}"


def _show_linux(console: Console, name: str, guest: dict[str, Any]) -> None:
    """How a guest is that the system boots."""
    process = f", process {guest['pid']}" if guest["pid"] else ""
    why = f": {guest['reason'] or guest['step']}" if guest["reason"] or guest["step"] else ""
    console.print(f"{name} is {guest['state']}{process}{why}", markup=False, soft_wrap=True)


def _show_door(console: Console, name: str, door: dict[str, Any]) -> None:
    """A guest's door, and what to start QEMU with: a command line to be copied, options of other devices behind it."""
    is_there = "a guest is there" if door["attached"] else "no guest is there"
    console.print(f"{name}: {door['path']}, {is_there}", markup=False, soft_wrap=True)
    if not door["attached"]:
        console.print(f"    memory: {door['memory_path']}", markup=False, soft_wrap=True)
        console.print(f"    {shlex.join([door['qemu'], *door['options']])}", markup=False, soft_wrap=True)


def _limits(server: dict[str, Any]) -> str:
    limits, counters = server["limits"], server["counters"]
    said = []
    if limits["bytes_per_second"]:
        said.append(f"{show_bytes(limits['bytes_per_second'])}/s")
    if limits["requests_per_second"]:
        said.append(f"{limits['requests_per_second']} requests/s")
    return (
        f"limited to {', '.join(said)}: {_count(counters['throttled'])} requests waited, {server['delayed']} wait now"
    )


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= max(size, 10**5):
            return f"{number / size:.1f}{unit}"
    return str(number)


def show_bytes(number: int) -> str:
    """A number of bytes for people."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
