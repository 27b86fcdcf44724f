from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "wire.h" nogil:
    uint8_t take8 "wire_take8" (const unsigned char *base, uint64_t offset) noexcept
    uint16_t take16 "wire_take16" (const unsigned char *base, uint64_t offset) noexcept
    uint32_t take32 "wire_take32" (const unsigned char *base, uint64_t offset) noexcept
    uint64_t take64 "wire_take64" (const unsigned char *base, uint64_t offset) noexcept
    void put8 "wire_put8" (unsigned char *base, uint64_t offset, uint8_t value) noexcept
    void put16 "wire_put16" (unsigned char *base, uint64_t offset, uint16_t value) noexcept
    void put32 "wire_put32" (unsigned char *base, uint64_t offset, uint32_t value) noexcept
    void put64 "wire_put64" (unsigned char *base, uint64_t offset, uint64_t value) noexcept
    int64_t receive "wire_receive" (int fd, unsigned char *out, uint64_t offset, uint64_t size) noexcept
    int64_t send "wire_send" (int fd, const unsigned char *data, uint64_t offset, uint64_t size) noexcept
