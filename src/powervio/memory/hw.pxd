from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "hw.h" nogil:
    uint8_t ld8(const unsigned char *base, uint64_t offset) noexcept
    uint8_t ld8_acquire(const unsigned char *base, uint64_t offset) noexcept
    uint16_t ld16(const unsigned char *base, uint64_t offset) noexcept
    uint16_t ld16_acquire(const unsigned char *base, uint64_t offset) noexcept
    uint32_t ld32(const unsigned char *base, uint64_t offset) noexcept
    uint64_t ld64(const unsigned char *base, uint64_t offset) noexcept
    uint64_t ld64_acquire(const unsigned char *base, uint64_t offset) noexcept
    uint64_t word_at(uint64_t address) noexcept
    void st8(unsigned char *base, uint64_t offset, uint8_t value) noexcept
    void st8_release(unsigned char *base, uint64_t offset, uint8_t value) noexcept
    void st16(unsigned char *base, uint64_t offset, uint16_t value) noexcept
    void st16_release(unsigned char *base, uint64_t offset, uint16_t value) noexcept
    void st32(unsigned char *base, uint64_t offset, uint32_t value) noexcept
    void st64(unsigned char *base, uint64_t offset, uint64_t value) noexcept
    void st64_release(unsigned char *base, uint64_t offset, uint64_t value) noexcept
    void or8(unsigned char *base, uint64_t offset, uint8_t bits) noexcept
    uint16_t get16(const unsigned char *base, uint64_t offset) noexcept
    uint32_t get32(const unsigned char *base, uint64_t offset) noexcept
    uint64_t get64(const unsigned char *base, uint64_t offset) noexcept
    void fence() noexcept
    void fence_loads() noexcept
    void copy(unsigned char *to, uint64_t to_offset, const unsigned char *source, uint64_t from_offset, uint64_t length) noexcept
    void fetch(unsigned char *to, uint64_t to_offset, uint64_t address, uint64_t length) noexcept
    void store(uint64_t address, const unsigned char *source, uint64_t from_offset, uint64_t length) noexcept
    void transfer(uint64_t to, uint64_t source, uint64_t length) noexcept
    void zero(unsigned char *base, uint64_t offset, uint64_t length) noexcept
    void fill(unsigned char *base, uint64_t offset, uint64_t length, uint8_t value) noexcept
    int all_set(const unsigned char *base, uint64_t offset, uint64_t length) noexcept
    int holds_data(uint64_t address, uint64_t length) noexcept
    uint16_t le16(uint16_t value) noexcept
    uint32_t le32(uint32_t value) noexcept
    uint64_t le64(uint64_t value) noexcept
    uint16_t be16(uint16_t value) noexcept
    uint32_t be32(uint32_t value) noexcept
    uint64_t be64(uint64_t value) noexcept
    unsigned char *at(unsigned char *base, uint64_t offset) noexcept
    uint64_t address_of(const unsigned char *base, uint64_t offset) noexcept
    int64_t preadv "hw_preadv"(int fd, const unsigned char *table, uint32_t count, uint64_t position) noexcept
    int64_t file_end(int fd) noexcept
    int64_t preadv_at_once(int fd, const unsigned char *table, uint32_t count, uint64_t position) noexcept
    int64_t pwritev_at_once(int fd, const unsigned char *table, uint32_t count, uint64_t position) noexcept
    int is_in_memory(int fd) noexcept
    int is_in_huge_pages(int fd) noexcept
    int64_t next_data(int fd, uint64_t position) noexcept
    void put8(uint64_t address, uint8_t value) noexcept
    int64_t pwritev "hw_pwritev"(int fd, const unsigned char *table, uint32_t count, uint64_t position) noexcept
    int event_signal(int fd) noexcept
    int event_take(int fd) noexcept
    int wait_readable(int fd, int milliseconds) noexcept
    int wait_any(int first, int second, int third, int milliseconds) noexcept
    uint64_t clock_ns() noexcept
    void relax() noexcept
    void prefetch(const unsigned char *base, uint64_t offset) noexcept
    void prefetch_at(uint64_t address) noexcept
    void prefetch_to_write(uint64_t address) noexcept
    void yield_cpu() noexcept
    int mutex_try(unsigned char *word) noexcept
    int mutex_wait(unsigned char *word) noexcept
    void mutex_give(unsigned char *word) noexcept

cdef extern from "hw.h":
    unsigned char *pointer(object buffer) except NULL
    unsigned char *pointer_to_read(object buffer) except NULL
    int check_signals() except -1
    uint64_t low64(object value) except? -1
    bytes bytes_at(uint64_t address, uint64_t length)
