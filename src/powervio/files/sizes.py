"""Sizes of what Linux's calls on files take and give, in bytes, and a bound that all servers of shares have."""

NAME_BYTES = 255
"""One component of a path."""
PATH_BYTES = 4096
"""A path, or where a symbolic link points to, with the NUL."""
ATTRIBUTE_BYTES = 65536
"""The largest value of an extended attribute, and the largest list of them (XATTR_SIZE_MAX, XATTR_LIST_MAX)."""
STATX_BYTES = 256
HANDLE_BYTES = 144
"""{u32 bytes, i32 type, up to 128 bytes, i32 number of the mount at offset 136}."""
FILE_SYSTEM_WORDS = 11
"""What `calls.file_system_of` gives, in u64."""
MOST_FIDS = 1 << 20
"""Of 9P, that one share's clients have at a time, unless it is said otherwise."""
