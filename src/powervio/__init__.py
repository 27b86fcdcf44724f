"""powervio: virtio for PowerVM's virtual I/O.

A VIO server partition serves virtio devices to client partitions that share no memory with it: through a
Command/Response Queue, windows into partner memory, and remote DMA done by the hypervisor. `docs/architecture.md` is
the way in.
"""

from powervio import _compiled

__version__ = "0.1.0"

_compiled.install()
