from libc.stdint cimport uint32_t, uint64_t

cdef extern from "uring.h" nogil:
    unsigned char *uring_open(unsigned int entries, int defers) noexcept
    void uring_close(unsigned char *handle) noexcept
    int uring_fd(const unsigned char *handle) noexcept
    int uring_defers(const unsigned char *handle) noexcept
    int uring_submit(unsigned char *handle) noexcept
    int uring_rest(unsigned char *handle) noexcept
    int uring_watch(unsigned char *handle, int fd, uint64_t token) noexcept
    int uring_move(unsigned char *handle, int writes, int fd, const unsigned char *table, uint32_t count, uint64_t position, uint64_t token) noexcept
    int uring_sync(unsigned char *handle, int fd, uint64_t token) noexcept
    int uring_result(unsigned char *handle, unsigned char *result) noexcept
    int uring_wait(unsigned char *handle) noexcept
