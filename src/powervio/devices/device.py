"""Moved to powervio.virtio.device."""

from powervio.virtio.device import Device, DeviceSession

__all__ = ["Device", "DeviceSession"]
