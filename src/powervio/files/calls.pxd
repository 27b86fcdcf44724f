from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "calls.h" nogil:
    int name_kind "fs_name_kind" (const unsigned char *name, uint64_t length) noexcept
    int open_at "fs_open_at" (int directory, const unsigned char *name, int flags, unsigned int mode) noexcept
    int open_parent "fs_open_parent" (int directory) noexcept
    int reopen "fs_reopen" (int proc, int fd, int flags) noexcept
    int stat_of "fs_stat_of" (int fd, unsigned char *out) noexcept
    int stat_at "fs_stat_at" (int directory, const unsigned char *name, unsigned char *out) noexcept
    int hold_at "fs_hold_at" (int directory, const unsigned char *name, unsigned char *out) noexcept
    int make_directory "fs_make_directory" (int directory, const unsigned char *name, unsigned int mode) noexcept
    int make_node "fs_make_node" (int directory, const unsigned char *name, unsigned int mode, uint64_t device) noexcept
    int make_symlink "fs_make_symlink" (int directory, const unsigned char *name, const unsigned char *target) noexcept
    int make_link "fs_make_link" (int proc, int fd, int directory, const unsigned char *name) noexcept
    int remove_name "fs_remove_name" (int directory, const unsigned char *name, int is_directory) noexcept
    int rename_at "fs_rename_at" (int directory, const unsigned char *name, int new_directory, const unsigned char *new_name, unsigned int flags) noexcept
    int read_link "fs_read_link" (int fd, unsigned char *out, int size) noexcept
    int path_of "fs_path_of" (int proc, int fd, unsigned char *out, int size) noexcept
    int change_mode "fs_change_mode" (int proc, int fd, unsigned int mode) noexcept
    int change_owner "fs_change_owner" (int fd, unsigned int uid, unsigned int gid) noexcept
    int change_times "fs_change_times" (int fd, const unsigned char *times) noexcept
    int cut_held "fs_cut_held" (int fd, int64_t size) noexcept
    int cut_open "fs_cut_open" (int fd, int64_t size) noexcept
    int file_system_of "fs_file_system_of" (int fd, unsigned char *out) noexcept
    int access_of "fs_access_of" (int fd, int mode) noexcept
    int get_attribute "fs_get_attribute" (int fd, const unsigned char *name, unsigned char *out, int size) noexcept
    int set_attribute "fs_set_attribute" (int fd, const unsigned char *name, const unsigned char *value, int size, int flags) noexcept
    int list_attributes "fs_list_attributes" (int fd, unsigned char *out, int size) noexcept
    int remove_attribute "fs_remove_attribute" (int fd, const unsigned char *name) noexcept
    int read_directory "fs_read_directory" (int fd, int64_t offset, unsigned char *out, int size) noexcept
    int sync_file "fs_sync_file" (int fd, int data_only) noexcept
    int allocate "fs_allocate" (int fd, int mode, int64_t position, int64_t length) noexcept
    int64_t seek_to "fs_seek_to" (int fd, int64_t position, int whence) noexcept
    int close_file "fs_close_file" (int fd) noexcept
    int64_t read_at_once "fs_read_at_once" (int fd, unsigned char *out, uint64_t offset, uint64_t size, int64_t position) noexcept
    int64_t read_at "fs_read_at" (int fd, unsigned char *out, uint64_t offset, uint64_t size, int64_t position) noexcept
    int64_t write_at "fs_write_at" (int fd, const unsigned char *data, uint64_t offset, uint64_t size, int64_t position) noexcept
    int handle_of "fs_handle_of" (int fd, unsigned char *out) noexcept
    int open_handle "fs_open_handle" (int mount, const unsigned char *handle, int flags) noexcept
    int64_t wall_clock "fs_wall_clock" () noexcept
    int take_identity "fs_take_identity" (uint32_t uid, uint32_t gid, const unsigned char *groups, uint32_t count) noexcept
    int hold_identity "fs_hold_identity" (int change) noexcept
