"""Where PAPR leaves a choice, or its readers disagree: what this hypervisor does (papr-vio 13).

The defaults are the lenient or the recommended reading; `docs/papr-decisions.md` tells why and names the test of each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """The strict/lenient choices of one hypervisor. All sizes are bytes."""

    limit_stuff_tce: bool = False
    """H_STUFF_TCE with more than 512 entries gives H_P4, as PAPR says. Linux before 2023 sends any count."""

    reject_reserved_headers: bool = False
    """H_SEND_CRQ gives H_PARAMETER for the headers 0x81-0xBF and 0xC1-0xFE too. PAPR reserves them and tests only for
    the top bit and for 0xFF."""

    reject_undefined_signal_bits: bool = False
    """H_VIO_SIGNAL gives H_PARAMETER for mode bits that the adapter has no interrupt for, as QEMU does, instead of
    ignoring them."""

    overlay_full_queue: bool = True
    """A transport event for a full queue replaces the newest element, marked with 0x20 in byte 3. If not, the event is
    lost, as some of PAPR's requirements have it."""

    max_redirected_mappings: int = 1
    """How many redirected copies one entry of a client may have at a time; more give H_RESOURCE. PAPR guarantees one
    (GET_MAX_REDIRECTED_MAPPINGS)."""

    drain_limit: float = 5.0
    """Seconds for which a change of a TCE waits for operations of DMA engines on the page, before it gives H_RESOURCE,
    and a reboot or a removal before it raises `LocalError`."""

    max_crq_length: int = 256 << 20
    """The longest queue that H_REG_CRQ takes, in bytes. PAPR names no limit."""

    max_sub_crqs: int = 16
    """Sub-CRQs of one adapter; 0 for a platform without them (H_FUNCTION). PAPR leaves it to device and firmware."""

    max_sub_crq_length: int = 1 << 20
    """The longest queue that H_REG_SUB_CRQ takes, in bytes: the hypervisor clears it in one call."""

    enable_crq_delays: int = 0
    """How often H_ENABLE_CRQ answers H_LONG_BUSY_ORDER_10_MSEC after a suspension before it succeeds."""
