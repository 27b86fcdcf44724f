"""Moved to powervio.virtio.driver."""

from powervio.virtio.driver import Driver

__all__ = ["Driver"]
