"""Sub-functions of H_VIOCTL and the forms of their arguments (papr-vio 1.6)."""

from __future__ import annotations

from enum import IntEnum

MAX_PREPARE_MSEC = 30_000
"""Longest time, in milliseconds, that a server may ask for between FF09 and READY_FOR_SUSPEND."""


class Vioctl(IntEnum):
    """What r5 of H_VIOCTL names."""

    GET_ILLAN_NUMBER_VLAN_IDS = 0x03
    GET_ILLAN_VLAN_ID_LIST = 0x04
    GET_ILLAN_SWITCH_ID = 0x05
    DISABLE_MIGRATION = 0x06
    ENABLE_MIGRATION = 0x07
    GET_PARTNER_INFO = 0x08
    DISABLE_ALL_VIO_INTERRUPTS = 0x0A
    DISABLE_VIO_INTERRUPT = 0x0B
    ENABLE_VIO_INTERRUPT = 0x0C
    GET_PARTNER_UUID = 0x10
    GET_ILLAN_SWITCHING_MODE = 0x12
    DISABLE_INACTIVE_TRUNK_RECEPTION = 0x13
    GET_MAX_REDIRECTED_MAPPINGS = 0x14
    ILLAN_MAC_SCAN = 0x1C
    ENABLE_PREPARE_FOR_SUSPEND = 0x1D
    READY_FOR_SUSPEND = 0x1E


def output_descriptor(length: int, ioba: int) -> int:
    """Where a sub-function is to write: `length` bytes (24 bits) at an address of 32 bits in the first pane."""
    return (length << 32) | ioba
