"""Which modules are compiled, and how their sources run where they are not.

The hot path is written in Cython's pure mode: one `.py` file that is compiled to an extension module when a C compiler
is there and runs as ordinary Python when not. This module puts one finder in front of Python's import system, for
three things:

1. `from cython.cimports.powervio.x.y import name`, which the compiler resolves through `powervio/x/y.pxd`, gives the
   ordinary module `powervio.x.y` when it is executed by the interpreter.
2. All or nothing: compiled modules share C types, and an extension beside an interpreted one would fail with a
   puzzling TypeError. If one of them has no extension module, the sources of all are used.
3. `POWERVIO_INTERPRETED=1` uses the sources although there are extension modules: tests run both ways.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import ModuleType

COMPILED = (
    "powervio.memory.space",
    "powervio.memory.mapping",
    "powervio.memory.target",
    "powervio.network.frame",
    "powervio.network.switch_addresses",
    "powervio.network.switch_decision",
    "powervio.network.switch_core",
    "powervio.files.tree_stat",
    "powervio.files.identity",
    "powervio.files.handles",
    "powervio.files.tree_share",
    "powervio.files.tree_open",
    "powervio.files.tree_file",
    "powervio.files.tree",
    "powervio.files.p9_codec",
    "powervio.files.p9_facts",
    "powervio.files.p9_fids",
    "powervio.files.p9_session",
    "powervio.files.p9_stream",
    "powervio.phyp.lock",
    "powervio.phyp.redirect",
    "powervio.phyp.tce",
    "powervio.phyp.dma_table",
    "powervio.phyp.rdma",
    "powervio.phyp.crq",
    "powervio.phyp.ledger",
    "powervio.phyp.interrupts",
    "powervio.phyp.records",
    "powervio.phyp.hcall_interrupt",
    "powervio.phyp.hcall_crq",
    "powervio.phyp.subcrq",
    "powervio.phyp.hcall_subcrq",
    "powervio.phyp.hcall_rdma",
    "powervio.phyp.hcall_tce",
    "powervio.phyp.hcall_rtce",
    "powervio.phyp.port",
    "powervio.phyp.physical",
    "powervio.vio.slots",
    "powervio.vio.dma",
    "powervio.vio.dispatcher",
    "powervio.vio.inbox",
    "powervio.vio.outbox",
    "powervio.vio.subcrq",
    "powervio.vio.ranges",
    "powervio.vio.engine",
    "powervio.transport.crq.service",
    "powervio.transport.crq.receivers",
    "powervio.transport.crq.channels",
    "powervio.transport.crq.remote_ring",
    "powervio.virtio.chain_record",
    "powervio.virtio.device_ring",
    "powervio.virtio.staging",
    "powervio.virtio.device_queue",
    "powervio.virtio.driver_ring",
    "powervio.virtio.driver_queue",
    "powervio.virtio.split_device",
    "powervio.virtio.split_driver",
    "powervio.virtio.packed_layout",
    "powervio.virtio.packed_device",
    "powervio.virtio.packed_driver",
    "powervio.virtio.request_table",
    "powervio.devices.block_table",
    "powervio.devices.net_frame",
    "powervio.devices.net_rules",
    "powervio.devices.net_in_hand",
    "powervio.devices.net_passage",
    "powervio.devices.net_forwarded",
    "powervio.devices.net_loop",
    "powervio.devices.net_relay_end",
    "powervio.devices.net_relay_frames",
    "powervio.devices.net_relay_buffers",
    "powervio.devices.net_relay",
    "powervio.devices.p9_serve",
    "powervio.transport.crq.shadow",
    "powervio.transport.crq.remote",
    "powervio.transport.crq.staging",
    "powervio.transport.crq.page_list",
    "powervio.transport.crq.redirect",
    "powervio.transport.crq.batch",
    "powervio.devices.block_loop",
    "powervio.drivers.block_request",
    "powervio.drivers.block_limits",
    "powervio.drivers.block_rings",
    "powervio.drivers.net_rings",
    "powervio.native.lan_frame",
    "powervio.native.lan_core",
    "powervio.native.lan_ring",
    "powervio.transport.crq.driver_queue",
    "powervio.transport.vhost_user.translate",
    "powervio.bench.load",
    "powervio.bench.load_crq",
    "powervio.bench.net_copy",
    "powervio.bench.load_9p",
    "powervio.testing.torture",
    "powervio.transport.vhost_user.payload",
    "powervio.transport.vhost_user.queue",
    "powervio.transport.vhost_user.inflight",
    "powervio.gateway.mailbox",
    "powervio.gateway.calls",
    "powervio.files.fuse_codec",
    "powervio.drivers.p9_core",
    "powervio.drivers.p9_nodes",
    "powervio.drivers.p9_fids",
    "powervio.drivers.p9_files",
    "powervio.drivers.p9_tree",
    "powervio.attach.fuse",
    "powervio.attach.fuse_p9",
    "powervio.attach.p9_socket",
)
"""The modules that are compiled; `ext-modules` in pyproject.toml is the same list."""

_CIMPORTS = "cython.cimports."
_SOURCE_ROOT = Path(__file__).parent.parent


def _has_file(module: str, suffixes: Sequence[str]) -> bool:
    stem = _SOURCE_ROOT.joinpath(*module.split("."))
    return any(stem.with_name(stem.name + suffix).exists() for suffix in suffixes)


def _extensions_usable() -> bool:
    if os.environ.get("POWERVIO_INTERPRETED", "0") not in ("", "0"):
        return False
    return not missing_extensions()


def missing_extensions() -> tuple[str, ...]:
    """The modules of `COMPILED` that have no extension module beside their source."""
    return tuple(module for module in COMPILED if not _has_file(module, EXTENSION_SUFFIXES))


_use_extensions = _extensions_usable()


def compiled_modules() -> tuple[str, ...]:
    """The modules whose extension is in use in this process: all of `COMPILED`, or none."""
    return COMPILED if _use_extensions else ()


def is_compiled() -> bool:
    """Whether the hot path runs compiled in this process."""
    return _use_extensions


class _CimportLoader(Loader):
    """Puts the module `powervio.x` where `cython.cimports.powervio.x` was asked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns what sys.modules holds after this, so the real module keeps its own __spec__.
        name = module.__name__
        sys.modules[name] = importlib.import_module(name.removeprefix(_CIMPORTS))


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(_CIMPORTS + "powervio"):
            return ModuleSpec(fullname, _CimportLoader())
        if fullname == "cython":
            return _spec_of_cython(path)
        if _use_extensions or path is None or fullname not in COMPILED:
            return None
        for entry in path:
            spec = FileFinder(entry, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(fullname)
            if spec is not None:
                return spec
        return None


class _CythonLoader(SourceFileLoader):
    """Loads cython, which puts an object without `__spec__` at `cython.cimports`; the import system reads it."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _give_cimports_a_spec()


def _spec_of_cython(path: Sequence[str] | None) -> ModuleSpec | None:
    spec = PathFinder.find_spec("cython", path)
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        spec.loader = _CythonLoader(spec.loader.name, spec.loader.path)
    return spec


def _give_cimports_a_spec() -> None:
    cimports = sys.modules["cython.cimports"]
    if getattr(cimports, "__spec__", None) is None:
        cimports.__spec__ = ModuleSpec("cython.cimports", None, is_package=True)


def install() -> None:
    """Put the finder in front of the import system, once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "cython.cimports" in sys.modules:
        _give_cimports_a_spec()
