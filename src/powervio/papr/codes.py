"""hcall tokens and return codes (LoPAR 2.9; papr-vio 1.2 and 1.3)."""

from __future__ import annotations

from enum import IntEnum

from powervio.errors import LocalError


class Hcall(IntEnum):
    """Tokens of the hypervisor calls (register r3)."""

    H_GET_TCE = 0x1C
    H_PUT_TCE = 0x20
    H_GET_TERM_CHAR = 0x54
    H_PUT_TERM_CHAR = 0x58
    H_EOI = 0x64
    H_CPPR = 0x68
    H_XIRR = 0x74
    H_REG_CRQ = 0xFC
    H_FREE_CRQ = 0x100
    H_VIO_SIGNAL = 0x104
    H_SEND_CRQ = 0x108
    H_PUT_RTCE = 0x10C
    H_COPY_RDMA = 0x110
    H_REGISTER_LOGICAL_LAN = 0x114
    H_FREE_LOGICAL_LAN = 0x118
    H_ADD_LOGICAL_LAN_BUFFER = 0x11C
    H_SEND_LOGICAL_LAN = 0x120
    H_WRITE_RDMA = 0x128
    H_READ_RDMA = 0x12C
    H_MULTICAST_CTRL = 0x130
    H_STUFF_TCE = 0x138
    H_PUT_TCE_INDIRECT = 0x13C
    H_PUT_RTCE_INDIRECT = 0x140
    H_CHANGE_LOGICAL_LAN_MAC = 0x14C
    H_VTERM_PARTNER_INFO = 0x150
    H_REGISTER_VTERM = 0x154
    H_FREE_VTERM = 0x158
    H_FREE_LOGICAL_LAN_BUFFER = 0x1D4
    H_LIOBN_ATTRIBUTES = 0x240
    H_ILLAN_ATTRIBUTES = 0x244
    H_ADD_LOGICAL_LAN_BUFFERS = 0x248
    H_REMOVE_RTCE = 0x24C
    H_VIOCTL = 0x2A8
    H_ENABLE_CRQ = 0x2B0
    H_REG_SUB_CRQ = 0x2DC
    H_FREE_SUB_CRQ = 0x2E0
    H_SEND_SUB_CRQ = 0x2E4
    H_SEND_SUB_CRQ_INDIRECT = 0x2E8


class ReturnCode(IntEnum):
    """What an hcall returns in r3. Zero is success, positive is a condition, negative an error."""

    H_SUCCESS = 0
    H_BUSY = 1
    H_CLOSED = 2
    H_NOT_AVAILABLE = 3
    H_CONSTRAINED = 4
    H_PARTIAL = 5
    H_IN_PROGRESS = 14
    H_LONG_BUSY_ORDER_1_MSEC = 9900
    H_LONG_BUSY_ORDER_10_MSEC = 9901
    H_LONG_BUSY_ORDER_100_MSEC = 9902
    H_LONG_BUSY_ORDER_1_SEC = 9903
    H_LONG_BUSY_ORDER_10_SEC = 9904
    H_LONG_BUSY_ORDER_100_SEC = 9905
    H_HARDWARE = -1
    H_FUNCTION = -2
    H_PRIVILEGE = -3
    H_PARAMETER = -4
    H_NOT_FOUND = -7
    H_NO_MEM = -9
    H_AUTHORITY = -10
    H_PERMISSION = -11
    H_DROPPED = -12
    H_SOURCE_PARM = -13
    H_DEST_PARM = -14
    H_REMOTE_PARM = -15
    H_RESOURCE = -16
    H_NOT_ENOUGH_RESOURCES = -44
    H_RESCINDED = -46
    H_P2 = -55
    H_P3 = -56
    H_P4 = -57
    H_P5 = -58
    H_IN_USE = -77


class HcallError(LocalError):
    """An hcall failed where the caller had no use for anything but success."""

    def __init__(self, call: Hcall, code: int) -> None:
        name = ReturnCode(code).name if code in ReturnCode._value2member_map_ else str(code)
        super().__init__(f"{call.name} returned {name} ({code})")
        self.call = call
        self.code = code
