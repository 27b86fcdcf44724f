"""The I/O side of a partition's operating system: memory, DMA mapping, interrupts, and its end of a CRQ.

This is what Linux has in its vio bus, IOMMU and XICS code; client and server partitions both stand on it, and so do
virtio over CRQ and the platform's native adapters. It knows the platform through `HcallPort` alone.
"""
