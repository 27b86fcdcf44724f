"""Transports: how a virtio device and its driver reach each other."""
