"""Translation Control Entries: format and limits (papr-vio 2.1)."""

from __future__ import annotations

TCE_READ = 0x1
"""The device (the hypervisor, or the partner through it) may read the page. IBM bit 63."""
TCE_WRITE = 0x2
"""The device may write the page. IBM bit 62."""
TCE_ACCESS = TCE_READ | TCE_WRITE
TCE_PAGE_MASK = 0xFFFF_FFFF_FFFF_F000
TCE_SIZE = 8
"""Bytes of one entry in memory, big-endian (the list of H_PUT_TCE_INDIRECT)."""
TCE_PAGE_SHIFT = 12
TCE_PAGE_SIZE = 1 << TCE_PAGE_SHIFT
MULTI_TCE_LIMIT = 512
"""Entries that one H_PUT_TCE_INDIRECT, and in strict mode one H_STUFF_TCE, may name."""

BIT_BUCKET_ALLOWED = 0x1
"""Attribute of a LIOBN (bit 63): entries with redirected copies may change, which ends those (papr-vio 2.4)."""
