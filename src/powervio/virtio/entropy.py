"""Entropy device (virtio 1.4, 5.4): one queue of device-writable buffers, no feature bits, no config space.

The device puts one random byte or more into each buffer and says how many (5.4.6.2); a driver puts no device-readable
part there (5.4.6.1).
"""

from __future__ import annotations

from powervio.virtio import features, ids

DEVICE_ID = ids.ENTROPY

features.register(DEVICE_ID, ())
