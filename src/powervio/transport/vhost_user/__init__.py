"""vhost-user: the transport that virtual machines use today (QEMU, docs/interop/vhost-user.rst).

A *front end* owns the guest and its memory, a *back end* carries out a virtio device; they share the memory by file
descriptors and speak over a Unix stream socket. `protocol` is the wire, `connection` the socket, `ring_state` the life
of a ring, `memory` what the front end shares; `back_end` answers messages, `service` serves queues, `server` listens;
`front_end` is the driver's side.
"""
