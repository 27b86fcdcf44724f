"""The OASIS virtio standard (1.4): role-neutral, transport-neutral, without I/O."""
