"""The way from a partition's software to its hypervisor: registers in, registers out.

phyp implements it for partitions in its own process and the gateway for guests and other processes. Everything above
uses the typed methods; they are thin and by default go through `hcall`, so that an implementation needs only that one.
Return codes are plain integers (`ReturnCode` names them): most of them are conditions that the caller handles, and an
exception for each would hide the protocol. Arguments are registers, without a byte order (papr-vio 1.1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from powervio.papr.codes import Hcall
from powervio.papr.engine import DmaEngine
from powervio.papr.nodes import VdeviceNode


class HcallPort(ABC):
    """One partition's view of its platform: its memory, its interrupt line, its device tree and its hcalls."""

    partition_id: int
    partition_name: str
    memory: memoryview
    """The partition's own memory, writable; an offset is a logical address."""
    nodes: Mapping[int, VdeviceNode]
    """Virtual adapters by unit address."""
    engines: Sequence[DmaEngine] = ()
    """DMA engines of the physical adapters that the partition owns."""
    interrupt_fd: int
    """eventfd, non-blocking: the external interrupt line. Readable when H_XIRR has something to tell."""
    max_virtual_dma_size: int | None
    """`/vdevice/ibm,max-virtual-dma-size`: longest H_COPY_RDMA in bytes, None for no limit (papr-vio 4.1)."""

    tree_source: int = 0
    """Interrupt source of hot-plug events (`/event-sources/hot-plug-events`); 0 on a platform without."""

    def watch_tree(self) -> int:
        """The device tree's generation now, another one after each change of `nodes`.

        From here on the next change pulses `tree_source`, once; whoever calls this again after the interrupt misses
        none. So a gateway needs nothing beyond its interrupt line for it. Not an hcall (RTAS `check-exception`).
        """
        return 0

    @abstractmethod
    def hcall(self, token: int, *registers: int) -> tuple[int, ...]:
        """Call the hypervisor with r4.. and get `(return code, r4, ...)`. Never raises for what a guest passes."""

    # hcall-tce, hcall-multi-tce (papr-vio 1.4)
    def get_tce(self, liobn: int, ioba: int) -> tuple[int, int]:
        """H_GET_TCE: `(return code, tce)`."""
        code, *out = self.hcall(Hcall.H_GET_TCE, liobn, ioba)
        return code, out[0] if out else 0

    def put_tce(self, liobn: int, ioba: int, tce: int) -> int:
        """H_PUT_TCE: map one page, or unmap it with access bits 0."""
        return self.hcall(Hcall.H_PUT_TCE, liobn, ioba, tce)[0]

    def stuff_tce(self, liobn: int, ioba: int, tce: int, count: int) -> int:
        """H_STUFF_TCE: put the same entry `count` times."""
        return self.hcall(Hcall.H_STUFF_TCE, liobn, ioba, tce, count)[0]

    def put_tce_indirect(self, liobn: int, ioba: int, list_address: int, count: int) -> int:
        """H_PUT_TCE_INDIRECT: put up to 512 big-endian entries from the page at a logical address, all or nothing."""
        return self.hcall(Hcall.H_PUT_TCE_INDIRECT, liobn, ioba, list_address, count)[0]

    # hcall-crq, hcall-vio (papr-vio 1.5)
    def reg_crq(self, unit_address: int, ioba: int, length: int) -> int:
        """H_REG_CRQ: H_CLOSED also means registered, with the partner not there yet."""
        return self.hcall(Hcall.H_REG_CRQ, unit_address, ioba, length)[0]

    def free_crq(self, unit_address: int) -> int:
        """H_FREE_CRQ: to be repeated on H_BUSY and H_LONG_BUSY."""
        return self.hcall(Hcall.H_FREE_CRQ, unit_address)[0]

    def send_crq(self, unit_address: int, high: int, low: int) -> int:
        """H_SEND_CRQ: put an element into the partner's queue."""
        return self.hcall(Hcall.H_SEND_CRQ, unit_address, high, low)[0]

    def enable_crq(self, unit_address: int) -> int:
        """H_ENABLE_CRQ: after a suspension."""
        return self.hcall(Hcall.H_ENABLE_CRQ, unit_address)[0]

    def vio_signal(self, unit_address: int, mode: int) -> int:
        """H_VIO_SIGNAL: 1 enables the CRQ interrupt, 0 disables it."""
        return self.hcall(Hcall.H_VIO_SIGNAL, unit_address, mode)[0]

    # hcall-sub-crq, hcall-vioctl (papr-vio 5, 1.6)
    def reg_sub_crq(self, unit_address: int, ioba: int, length: int) -> tuple[int, int, int]:
        """H_REG_SUB_CRQ: `(return code, cookie, interrupt number)`; H_CLOSED also means registered."""
        code, *out = self.hcall(Hcall.H_REG_SUB_CRQ, unit_address, ioba, length)
        return (code, out[0], out[1]) if len(out) > 1 else (code, 0, 0)

    def free_sub_crq(self, unit_address: int, cookie: int) -> int:
        """H_FREE_SUB_CRQ: one of the caller's own; to be repeated on H_BUSY and H_LONG_BUSY."""
        return self.hcall(Hcall.H_FREE_SUB_CRQ, unit_address, cookie)[0]

    def send_sub_crq(self, unit_address: int, cookie: int, dw0: int, dw1: int, dw2: int, dw3: int) -> int:
        """H_SEND_SUB_CRQ: put an element of 32 bytes into the partner's Sub-CRQ with this cookie."""
        return self.hcall(Hcall.H_SEND_SUB_CRQ, unit_address, cookie, dw0, dw1, dw2, dw3)[0]

    def send_sub_crq_indirect(self, unit_address: int, cookie: int, ioba: int, count: int) -> int:
        """H_SEND_SUB_CRQ_INDIRECT: 1 to 16 elements from one mapped page of the caller's, all or none of them."""
        return self.hcall(Hcall.H_SEND_SUB_CRQ_INDIRECT, unit_address, cookie, ioba, count)[0]

    def vioctl(self, unit_address: int, function: int, p1: int = 0, p2: int = 0, p3: int = 0) -> tuple[int, ...]:
        """H_VIOCTL: `(return code, r4, ...)` of the sub-function (`powervio.papr.vioctl`)."""
        return self.hcall(Hcall.H_VIOCTL, unit_address, function, p1, p2, p3)

    # hcall-rdma (papr-vio 4)
    def copy_rdma(self, length: int, s_liobn: int, s_ioba: int, d_liobn: int, d_ioba: int) -> int:
        """H_COPY_RDMA: copy between any two panes of the caller."""
        return self.hcall(Hcall.H_COPY_RDMA, length, s_liobn, s_ioba, d_liobn, d_ioba)[0]

    def write_rdma(self, d_liobn: int, d_ioba: int, data: bytes) -> int:
        """H_WRITE_RDMA: up to 48 bytes from registers into a remote pane."""
        padded = data.ljust(48, b"\0")
        words = (int.from_bytes(padded[i : i + 8], "big") for i in range(0, 48, 8))
        return self.hcall(Hcall.H_WRITE_RDMA, len(data), d_liobn, d_ioba, *words)[0]

    def read_rdma(self, s_liobn: int, s_ioba: int, length: int) -> tuple[int, bytes]:
        """H_READ_RDMA: up to 72 bytes from a remote pane into registers."""
        code, *words = self.hcall(Hcall.H_READ_RDMA, length, s_liobn, s_ioba)
        return code, b"".join(word.to_bytes(8, "big") for word in words)[:length]

    # hcall-term, hcall-vty (papr-vio 7.7)
    def put_term_char(self, unit_address: int, data: bytes) -> int:
        """H_PUT_TERM_CHAR: up to 16 bytes to the other end of a virtual terminal, all or (H_BUSY) none."""
        padded = data.ljust(16, b"\0")
        high, low = int.from_bytes(padded[:8], "big"), int.from_bytes(padded[8:16], "big")
        return self.hcall(Hcall.H_PUT_TERM_CHAR, unit_address, len(data), high, low)[0]

    def get_term_char(self, unit_address: int) -> tuple[int, ...]:
        """H_GET_TERM_CHAR: `(return code, number of bytes, first eight, last eight)`."""
        return self.hcall(Hcall.H_GET_TERM_CHAR, unit_address)

    def vterm_partner_info(self, unit_address: int, partner_id: int, partner_ua: int, page: int) -> int:
        """H_VTERM_PARTNER_INFO: the next vty of a vty-server, into the page at a logical address."""
        return self.hcall(Hcall.H_VTERM_PARTNER_INFO, unit_address, partner_id, partner_ua, page)[0]

    def register_vterm(self, unit_address: int, partner_id: int, partner_ua: int) -> int:
        """H_REGISTER_VTERM: connect a vty-server to a vty."""
        return self.hcall(Hcall.H_REGISTER_VTERM, unit_address, partner_id, partner_ua)[0]

    def free_vterm(self, unit_address: int) -> int:
        """H_FREE_VTERM: to be repeated on H_BUSY and H_LONG_BUSY."""
        return self.hcall(Hcall.H_FREE_VTERM, unit_address)[0]

    # hcall-lLAN, hcall-illan-options (papr-vio 7.4)
    def register_logical_lan(self, unit_address: int, buffer_list: int, queue: int, filters: int, mac: int) -> int:
        """H_REGISTER_LOGICAL_LAN: two mapped pages, the descriptor of the receive queue, the address."""
        return self.hcall(Hcall.H_REGISTER_LOGICAL_LAN, unit_address, buffer_list, queue, filters, mac)[0]

    def free_logical_lan(self, unit_address: int) -> int:
        """H_FREE_LOGICAL_LAN: to be repeated on H_BUSY and H_LONG_BUSY."""
        return self.hcall(Hcall.H_FREE_LOGICAL_LAN, unit_address)[0]

    def add_logical_lan_buffer(self, unit_address: int, descriptor: int) -> int:
        """H_ADD_LOGICAL_LAN_BUFFER: a buffer to receive into."""
        return self.hcall(Hcall.H_ADD_LOGICAL_LAN_BUFFER, unit_address, descriptor)[0]

    def add_logical_lan_buffers(self, unit_address: int, *descriptors: int) -> int:
        """H_ADD_LOGICAL_LAN_BUFFERS: up to eight of them."""
        return self.hcall(Hcall.H_ADD_LOGICAL_LAN_BUFFERS, unit_address, *descriptors)[0]

    def free_logical_lan_buffer(self, unit_address: int, size: int) -> int:
        """H_FREE_LOGICAL_LAN_BUFFER: one of this size comes back by the receive queue."""
        return self.hcall(Hcall.H_FREE_LOGICAL_LAN_BUFFER, unit_address, size)[0]

    def send_logical_lan(
        self, unit_address: int, descriptors: Sequence[int], token: int = 0, mss: int = 0
    ) -> tuple[int, int]:
        """H_SEND_LOGICAL_LAN: up to six pieces of a frame. `(return code, token to go on with after H_BUSY)`."""
        padded = (*descriptors, 0, 0, 0, 0, 0, 0)[:6]
        code, *out = self.hcall(Hcall.H_SEND_LOGICAL_LAN, unit_address, *padded, token, mss)
        return code, out[0] if out else 0

    def multicast_ctrl(self, unit_address: int, flags: int, mac: int = 0) -> tuple[int, int]:
        """H_MULTICAST_CTRL: `(return code, enables and number of filters)`."""
        code, *out = self.hcall(Hcall.H_MULTICAST_CTRL, unit_address, flags, mac)
        return code, out[0] if out else 0

    def change_logical_lan_mac(self, unit_address: int, mac: int) -> int:
        """H_CHANGE_LOGICAL_LAN_MAC: the address is another."""
        return self.hcall(Hcall.H_CHANGE_LOGICAL_LAN_MAC, unit_address, mac)[0]

    def illan_attributes(self, unit_address: int, reset: int = 0, wanted: int = 0) -> tuple[int, int]:
        """H_ILLAN_ATTRIBUTES: `(return code, attributes)` after the bits of `reset` and then those of `wanted`."""
        code, *out = self.hcall(Hcall.H_ILLAN_ATTRIBUTES, unit_address, reset, wanted)
        return code, out[0] if out else 0

    # redirected DMA: hcall-rdma, hcall-multi-tce, hcall-liobn-attributes (papr-vio 2.5)
    def put_rtce(self, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
        """H_PUT_RTCE: `(return code, pages mapped before the one that failed)`."""
        code, *out = self.hcall(Hcall.H_PUT_RTCE, r_liobn, r_ioba, liobn, ioba, count)
        return code, out[0] if out else 0

    def put_rtce_indirect(self, list_address: int, r_liobn: int, liobn: int, ioba: int, count: int) -> tuple[int, int]:
        """H_PUT_RTCE_INDIRECT: `(return code, pages mapped before the one that failed)`."""
        code, *out = self.hcall(Hcall.H_PUT_RTCE_INDIRECT, list_address, r_liobn, liobn, ioba, count)
        return code, out[0] if out else 0

    def remove_rtce(self, r_liobn: int, r_ioba: int, liobn: int, ioba: int, count: int, tce: int = 0) -> int:
        """H_REMOVE_RTCE: end copies and leave `tce` without access in their places."""
        return self.hcall(Hcall.H_REMOVE_RTCE, r_liobn, r_ioba, liobn, ioba, count, tce)[0]

    def liobn_attributes(self, liobn: int, reset: int, wanted: int) -> tuple[int, int]:
        """H_LIOBN_ATTRIBUTES: `(return code, attributes)` after the bits of `reset` and then those of `wanted`."""
        code, *out = self.hcall(Hcall.H_LIOBN_ATTRIBUTES, liobn, reset, wanted)
        return code, out[0] if out else 0

    # hcall-interrupt
    def xirr(self) -> int:
        """H_XIRR: accept the most favoured interrupt: CPPR in the top byte, source below; source 0 is none."""
        return self.hcall(Hcall.H_XIRR)[1]

    def eoi(self, xirr: int) -> int:
        """H_EOI: end the interrupt accepted with this value."""
        return self.hcall(Hcall.H_EOI, xirr)[0]

    def cppr(self, priority: int) -> int:
        """H_CPPR: set the current processor priority; 0xFF lets everything through."""
        return self.hcall(Hcall.H_CPPR, priority)[0]
