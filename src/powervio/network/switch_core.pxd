# For compiled loops that forward frames by themselves, without the interpreter lock:
#
#   decision = Decision(core)                       # one for each loop: it has the answer to its last frame
#   kind = core.decide(decision, handle, header, 0, length, begin, clock_ns())
#   if kind == ONE:   decision.egress gets the frame; what becomes of its tag is decision.todo
#   if kind == FLOOD: number = decision.next_receiver(), until it is -1, gets it; what becomes of its tag is
#                     decision.tag_change(decision.gets_tagged(number))
#   if kind == DROP:  it is counted already, by decision.reason (but "no port": then the sender is gone)
#   core.delivered(number, length) or core.missed(number, reason) for each receiver that the loop serves itself; others
#   count when they get it from `SwitchPort.deliver`
#
# `handle` is that of the sending `SwitchPort`. decide() reads the first 18 bytes of the frame (HEADER_BYTES), each once:
# give it a private copy of what a partner may still change, and forward that copy. `length` is of the whole frame; `begin`
# is csum_start if the checksum is partial, else HEADER_BYTES.
#
# Tags: KEEP; STRIP: bytes 12 to 15 go; PUSH: 0x8100 and decision.tci come in there; REPLACE: bytes 14 and 15 become tci.
# csum_start and hdr_len move along by 4.
#
# Numbers of ports that were removed come back, the one that was removed first at first; `core.version` is another after
# each change. A loop that has what belongs to a number looks whether `version` is the same after decide() as before.
cimport cython

from powervio.network.frame cimport Frame
from powervio.network.switch_addresses cimport AddressTable
from powervio.network.switch_decision cimport Decision

@cython.final
cdef class SwitchCore:
    cdef readonly unsigned int limit
    cdef readonly unsigned int version
    cdef readonly unsigned int stride
    cdef readonly unsigned int words
    cdef unsigned char *ports
    cdef unsigned char *counts
    cdef unsigned char *members
    cdef unsigned char *open
    cdef unsigned char *tags
    cdef unsigned char *trunks
    cdef unsigned char *learners
    cdef unsigned char *any_group
    cdef readonly AddressTable addresses
    cdef unsigned char *word
    cdef object _books
    cdef int decide(self, Decision out, unsigned int handle, unsigned char *frame, unsigned long long offset, unsigned long long length, unsigned int begin, unsigned long long now) noexcept nogil
    cdef void delivered(self, unsigned int port, unsigned long long length) noexcept nogil
    cdef void delivered_many(self, unsigned int port, unsigned long long frames, unsigned long long length) noexcept nogil
    cdef void missed(self, unsigned int port, int reason) noexcept nogil
    cdef void _take(self) noexcept nogil
    cdef int _decide(self, Decision out, unsigned int handle, unsigned char *frame, unsigned long long offset, unsigned long long length, unsigned int begin, unsigned long long now) noexcept nogil
    cdef int _unknown(self, Decision out, unsigned int port, unsigned long long now) noexcept nogil
    cdef int _flood(self, Decision out, unsigned int port, unsigned char *some, unsigned long long place, unsigned char *others, unsigned long long other) noexcept nogil
    cdef int _one(self, Decision out, int port) noexcept nogil
    cdef int _drop(self, Decision out, int reason) noexcept nogil
    cdef bint _exceeds(self, unsigned long long row, unsigned long long cost, unsigned long long now) noexcept nogil

cdef unsigned long long _address(unsigned char *frame, unsigned long long offset) noexcept nogil
cdef bint _has(unsigned char *bits, unsigned long long place, unsigned int number) noexcept nogil
cdef void _set(unsigned char *bits, unsigned long long place, unsigned int number, bint value) noexcept nogil
