"""virtio over CRQ, RTCE windows and remote DMA: the transport of the slides, and its successor for virtio 1.

`protocol` is the wire, `client` the driver's end (virtio_vio), `server` the device's end (virtio_crq). The normative
text is docs/protocol.md; its clause numbers (P1.2) are cited where they are carried out.
"""
