"""Device type numbers and their names (virtio 1.4, chapter 5)."""

from __future__ import annotations

NET = 1
BLOCK = 2
CONSOLE = 3
ENTROPY = 4
BALLOON = 5
"""The traditional memory balloon; 13 is another one that nobody built."""
SCSI = 8
P9 = 9
"""9P transport; in use, but without a chapter in the standard."""
GPU = 16
RTC = 17
INPUT = 18
VSOCK = 19
CRYPTO = 20
IOMMU = 23
MEMORY = 24
SOUND = 25
FS = 26
PMEM = 27

_NAMES = {
    NET: "network device",
    BLOCK: "block device",
    CONSOLE: "console",
    ENTROPY: "entropy source",
    BALLOON: "memory balloon (traditional)",
    6: "ioMemory",
    7: "rpmsg",
    SCSI: "SCSI host",
    P9: "9P transport",
    10: "mac80211 wlan",
    11: "rproc serial",
    12: "virtio CAIF",
    13: "memory balloon",
    GPU: "GPU device",
    RTC: "RTC device",
    INPUT: "input device",
    VSOCK: "socket device",
    CRYPTO: "crypto device",
    21: "signal distribution module",
    22: "pstore device",
    IOMMU: "IOMMU device",
    MEMORY: "memory device",
    SOUND: "sound device",
    FS: "file system device",
    PMEM: "PMEM device",
    28: "RPMB device",
    29: "mac80211 hwsim wireless simulation device",
    30: "video encoder device",
    31: "video decoder device",
    32: "SCMI device",
    33: "NitroSecureModule",
    34: "I2C adapter",
    35: "watchdog",
    36: "CAN device",
    38: "parameter server",
    39: "audio policy device",
    40: "Bluetooth device",
    41: "GPIO device",
    42: "RDMA device",
    43: "camera device",
    44: "ISM device",
    45: "SPI controller",
    46: "TEE device",
    47: "CPU balloon device",
    48: "media device",
    49: "USB controller",
}


def name(device_id: int) -> str:
    """The standard's name of a device type; `device type 99` for one that it does not know."""
    return _NAMES.get(device_id, f"device type {device_id}")
