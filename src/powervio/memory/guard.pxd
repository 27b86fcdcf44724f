from libc.stdint cimport uint64_t

cdef extern from "guard.h" nogil:
    unsigned int guard_add(const unsigned char *base, uint64_t length, uint64_t grain) noexcept
    void guard_remove(unsigned int number) noexcept
    unsigned char *guard_breaks_at() noexcept
    int guard_is_broken(unsigned int number) noexcept
