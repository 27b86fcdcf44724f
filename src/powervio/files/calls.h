/* The system calls that a share is made of, each with its result or the
 * negative errno, and which identity of the kernel's a thread makes them with.
 * The interpreted stand-in is calls.py; calls.pxd declares this.
 *
 * Names end with a NUL, and callers have checked that they are one component.
 * `proc` is a descriptor of /proc/self/fd: what a file is held by (O_PATH) is
 * opened again, linked and changed through it, so never by a path that somebody
 * may have changed meanwhile. Calls go by their numbers where the library's
 * functions are points of cancellation, or do it for all threads (setgroups).
 */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

typedef unsigned char fs_u8;

#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

#define FS_ANSWER(expression) \
	do { \
		long fs_done; \
		do { \
			fs_done = (long)(expression); \
		} while (fs_done < 0 && errno == EINTR); \
		return fs_done < 0 ? -errno : fs_done; \
	} while (0)

struct fs_thread {
	int known; /* what follows is so */
	int depth; /* scopes that keep it */
	int own_folder;
	int has_rights, dropped;
	uint32_t uid, gid, count;
	uint32_t groups[64];
	struct __user_cap_data_struct rights[2]; /* the server's own */
};

static __thread struct fs_thread fs_thread;

/* The client has applied its umask. The process's is out of the way for the
 * time of one call; it is this thread's own from the first such call on. */
static inline mode_t fs_open_mask(void)
{
	if (!fs_thread.own_folder) {
		unshare(CLONE_FS);
		fs_thread.own_folder = 1;
	}
	return umask(0);
}

static inline void fs_close_mask(mode_t before)
{
	int code = errno;

	umask(before);
	errno = code;
}

static inline int fs_number(char *text, int number)
{ return snprintf(text, 16, "%d", number); }

static inline int fs_path(char *text, int number)
{ return snprintf(text, 32, "/proc/self/fd/%d", number); }

/* Whether a name is one component: 0, or -ENOENT, -EINVAL, -ENAMETOOLONG; 1 is
 * ".", 2 is "..". One above 255 bytes is for the file system to refuse, for
 * other errors come before that. */
static inline int fs_name_kind(const fs_u8 *name, uint64_t length)
{
	if (!length)
		return -ENOENT;
	if (length < 3 && name[0] == '.' && (length == 1 || name[1] == '.'))
		return (int)length;
	if (memchr(name, 0, length) || memchr(name, '/', length))
		return -EINVAL;
	return length > 4095 ? -ENAMETOOLONG : 0;
}

static inline long fs_open_once(int directory, const fs_u8 *name, int flags, unsigned int mode)
{
	static int missing; /* a kernel before 5.6, or a filter */
	struct open_how how = { .flags = (unsigned int)flags | O_NOFOLLOW, .mode = mode,
				.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH };
	long fd;

	if (!__atomic_load_n(&missing, __ATOMIC_RELAXED)) {
		fd = syscall(SYS_openat2, directory, name, &how, sizeof(how));
		if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
			return fd;
		if (errno == ENOSYS)
			__atomic_store_n(&missing, 1, __ATOMIC_RELAXED);
	}
	return syscall(SYS_openat, directory, name, flags | O_NOFOLLOW, mode);
}

/* Open one name in a directory: no link is followed, whoever made it. */
static inline int fs_open_at(int directory, const fs_u8 *name, int flags, unsigned int mode)
{
	mode_t before;
	long fd;

	if (!(flags & O_CREAT))
		FS_ANSWER(fs_open_once(directory, name, flags, 0));
	before = fs_open_mask();
	do {
		fd = fs_open_once(directory, name, flags, mode);
	} while (fd < 0 && errno == EINTR);
	fs_close_mask(before);
	return fd < 0 ? -errno : (int)fd;
}

/* Hold the directory that a directory is in. */
static inline int fs_open_parent(int directory)
{ FS_ANSWER(syscall(SYS_openat, directory, "..", O_PATH | O_NOFOLLOW | O_CLOEXEC, 0)); }

/* Open the file that a descriptor holds. */
static inline int fs_reopen(int proc, int fd, int flags)
{
	char text[16];

	fs_number(text, fd);
	FS_ANSWER(syscall(SYS_openat, proc, text, flags, 0));
}

static inline int fs_stat_of(int fd, fs_u8 *out)
{ FS_ANSWER(syscall(SYS_statx, fd, "", AT_EMPTY_PATH, 0x1fffU, out)); }

/* The same of a name in a directory, whatever it is. */
static inline int fs_stat_at(int directory, const fs_u8 *name, fs_u8 *out)
{
	const int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;

	FS_ANSWER(syscall(SYS_statx, directory, (const char *)name, flags, 0x1fffU, out));
}

/* Hold a name in a directory, with what statx(2) has of it. */
static inline int fs_hold_at(int directory, const fs_u8 *name, fs_u8 *out)
{
	int fd = fs_open_at(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	int done = fd < 0 ? fd : fs_stat_of(fd, out);

	if (done < 0 && fd >= 0)
		syscall(SYS_close, fd);
	return done < 0 ? done : fd;
}

static inline int fs_make_directory(int directory, const fs_u8 *name, unsigned int mode)
{
	mode_t before = fs_open_mask();
	int done = mkdirat(directory, (const char *)name, mode);

	fs_close_mask(before);
	return done < 0 ? -errno : 0;
}

static inline int fs_make_node(int directory, const fs_u8 *name, unsigned int mode, uint64_t device)
{
	mode_t before = fs_open_mask();
	int done = mknodat(directory, (const char *)name, mode, (dev_t)device);

	fs_close_mask(before);
	return done < 0 ? -errno : 0;
}

static inline int fs_make_symlink(int directory, const fs_u8 *name, const fs_u8 *target)
{ FS_ANSWER(symlinkat((const char *)target, directory, (const char *)name)); }

static inline int fs_make_link(int proc, int fd, int directory, const fs_u8 *name)
{
	char text[16];

	fs_number(text, fd);
	FS_ANSWER(linkat(proc, text, directory, (const char *)name, AT_SYMLINK_FOLLOW));
}

static inline int fs_remove_name(int directory, const fs_u8 *name, int is_directory)
{ FS_ANSWER(unlinkat(directory, (const char *)name, is_directory ? AT_REMOVEDIR : 0)); }

static inline int fs_rename_at(int directory, const fs_u8 *name, int new_directory, const fs_u8 *new_name,
			       unsigned int flags)
{ FS_ANSWER(syscall(SYS_renameat2, directory, name, new_directory, new_name, flags)); }

static inline int fs_read_link(int fd, fs_u8 *out, int size)
{ FS_ANSWER(readlinkat(fd, "", (char *)out, (size_t)size)); }

/* Where the kernel says that a file is, as one atomic answer. */
static inline int fs_path_of(int proc, int fd, fs_u8 *out, int size)
{
	char text[16];

	fs_number(text, fd);
	FS_ANSWER(readlinkat(proc, text, (char *)out, (size_t)size));
}

static inline int fs_change_mode(int proc, int fd, unsigned int mode)
{
	char text[16];

	fs_number(text, fd);
	FS_ANSWER(syscall(SYS_fchmodat, proc, text, mode));
}

static inline int fs_change_owner(int fd, unsigned int uid, unsigned int gid)
{ FS_ANSWER(fchownat(fd, "", uid, gid, AT_EMPTY_PATH)); }

/* Times as four i64: seconds and nanoseconds of access and of modification. */
static inline int fs_change_times(int fd, const fs_u8 *times)
{
	struct timespec both[2];
	int64_t words[4];

	memcpy(words, times, sizeof(words));
	both[0].tv_sec = (time_t)words[0];
	both[0].tv_nsec = (long)words[1];
	both[1].tv_sec = (time_t)words[2];
	both[1].tv_nsec = (long)words[3];
	FS_ANSWER(utimensat(fd, "", both, AT_EMPTY_PATH));
}

static inline int fs_cut_held(int fd, int64_t size)
{
	char text[32];

	fs_path(text, fd);
	FS_ANSWER(truncate(text, size));
}

static inline int fs_cut_open(int fd, int64_t size)
{ FS_ANSWER(ftruncate(fd, size)); }

static inline int fs_file_system_of(int fd, fs_u8 *out)
{
	struct statfs fs;
	uint64_t words[11];
	int id[2];

	if (fstatfs(fd, &fs) < 0)
		return -errno;
	memcpy(id, &fs.f_fsid, sizeof(id));
	words[0] = (uint32_t)fs.f_type;
	words[1] = (uint64_t)fs.f_bsize;
	words[2] = fs.f_blocks;
	words[3] = fs.f_bfree;
	words[4] = fs.f_bavail;
	words[5] = fs.f_files;
	words[6] = fs.f_ffree;
	words[7] = (uint64_t)(uint32_t)id[0] | (uint64_t)(uint32_t)id[1] << 32;
	words[8] = (uint64_t)fs.f_namelen;
	words[9] = (uint64_t)fs.f_frsize;
	words[10] = (uint64_t)fs.f_flags;
	memcpy(out, words, sizeof(words));
	return 0;
}

static inline int fs_access_of(int fd, int mode)
{ FS_ANSWER(syscall(SYS_faccessat2, fd, "", mode, AT_EACCESS | AT_EMPTY_PATH)); }

static inline int fs_get_attribute(int fd, const fs_u8 *name, fs_u8 *out, int size)
{
	char text[32];

	fs_path(text, fd);
	FS_ANSWER(getxattr(text, (const char *)name, out, (size_t)size));
}

static inline int fs_set_attribute(int fd, const fs_u8 *name, const fs_u8 *value, int size, int flags)
{
	char text[32];

	fs_path(text, fd);
	FS_ANSWER(setxattr(text, (const char *)name, value, (size_t)size, flags));
}

static inline int fs_list_attributes(int fd, fs_u8 *out, int size)
{
	char text[32];

	fs_path(text, fd);
	FS_ANSWER(listxattr(text, (char *)out, (size_t)size));
}

static inline int fs_remove_attribute(int fd, const fs_u8 *name)
{
	char text[32];

	fs_path(text, fd);
	FS_ANSWER(removexattr(text, (const char *)name));
}

/* Entries from an offset on, -1: from where the last call ended. */
static inline int fs_read_directory(int fd, int64_t offset, fs_u8 *out, int size)
{
	if (offset >= 0 && lseek(fd, offset, SEEK_SET) < 0)
		return -errno;
	FS_ANSWER(syscall(SYS_getdents64, fd, out, (long)size));
}

static inline int fs_sync_file(int fd, int data_only)
{ FS_ANSWER(syscall(data_only ? SYS_fdatasync : SYS_fsync, fd)); }

static inline int fs_allocate(int fd, int mode, int64_t position, int64_t length)
{ FS_ANSWER(fallocate(fd, mode, position, length)); }

static inline int64_t fs_seek_to(int fd, int64_t position, int whence)
{ FS_ANSWER(lseek(fd, position, whence)); }

/* Linux has closed it also when it says EINTR. */
static inline int fs_close_file(int fd) { return syscall(SYS_close, fd) < 0 && errno != EINTR ? -errno : 0; }

static inline int64_t fs_read_at(int fd, fs_u8 *out, uint64_t offset, uint64_t size, int64_t position)
{ FS_ANSWER(syscall(SYS_pread64, fd, out + offset, size, position)); }

/* The same of what is in memory now; fewer bytes, or an error, when the rest would have to be waited for. */
static inline int64_t fs_read_at_once(int fd, fs_u8 *out, uint64_t offset, uint64_t size, int64_t position)
{
	struct iovec piece = { out + offset, size };

	FS_ANSWER(syscall(SYS_preadv2, fd, &piece, 1, (long)position, 0L, RWF_NOWAIT));
}

static inline int64_t fs_write_at(int fd, const fs_u8 *data, uint64_t offset, uint64_t size, int64_t position)
{ FS_ANSWER(syscall(SYS_pwrite64, fd, data + offset, size, position)); }

/* {u32 bytes, i32 type, the handle, and at 136 the number of the mount}. */
static inline int fs_handle_of(int fd, fs_u8 *out)
{
	const uint32_t room = 128;
	int mount = 0;
	long done;

	memcpy(out, &room, sizeof(room));
	done = syscall(SYS_name_to_handle_at, fd, "", out, &mount, AT_EMPTY_PATH);
	memcpy(out + 136, &mount, sizeof(mount));
	return done < 0 ? -errno : 0;
}

static inline int fs_open_handle(int mount, const fs_u8 *handle, int flags)
{ FS_ANSWER(syscall(SYS_open_by_handle_at, mount, handle, flags)); }

/* The time that files are stamped with, in nanoseconds. */
static inline int64_t fs_wall_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* setfsuid takes the rights of root over files away, and gives them back. The
 * others have to go as well, for some are asked for in calls on files
 * (CAP_SYS_ADMIN for trusted.*, CAP_SETFCAP, CAP_SYS_RESOURCE): all but those
 * to become somebody else again. */
static inline int fs_take_rights(struct fs_thread *t, int drop)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = 0 };
	struct __user_cap_data_struct rights[2];

	if (t->has_rights && t->dropped == drop)
		return 0;
	if (!t->has_rights) {
		if (syscall(SYS_capget, &header, t->rights) < 0)
			return -errno;
		/* it may have been started by a thread that acts as somebody else */
		t->rights[0].effective = t->rights[0].permitted;
		t->rights[1].effective = t->rights[1].permitted;
		t->has_rights = 1;
	}
	memcpy(rights, t->rights, sizeof(rights));
	if (drop) {
		rights[0].effective &= 1U << CAP_SETUID | 1U << CAP_SETGID;
		rights[1].effective = 0;
	}
	t->dropped = -1;
	if (syscall(SYS_capset, &header, rights) < 0)
		return -errno;
	t->dropped = drop;
	return 0;
}

/* Have this thread act on files as somebody else; what it is already costs
 * nothing. After a failure it may be neither, so nothing is done then. */
static inline int fs_take_identity(uint32_t uid, uint32_t gid, const fs_u8 *groups, uint32_t count)
{
	struct fs_thread *t = &fs_thread;
	size_t bytes = (size_t)count * sizeof(uint32_t);
	int done;

	if (t->known && t->uid == uid && t->gid == gid && t->count == count && !memcmp(t->groups, groups, bytes))
		return 0;
	if (count > sizeof(t->groups) / sizeof(t->groups[0]))
		return -EINVAL;
	if (!t->known || t->count != count || memcmp(t->groups, groups, bytes)) {
		t->known = 0;
		if (syscall(SYS_setgroups, (long)count, groups) < 0)
			return -errno;
		memcpy(t->groups, groups, bytes);
		t->count = count;
	}
	t->known = 0;
	syscall(SYS_setfsgid, gid);
	syscall(SYS_setfsuid, uid);
	if ((uint32_t)syscall(SYS_setfsgid, (uint32_t)-1) != gid || (uint32_t)syscall(SYS_setfsuid, (uint32_t)-1) != uid)
		return -EPERM;
	done = fs_take_rights(t, uid != 0);
	if (done < 0)
		return done;
	t->uid = uid;
	t->gid = gid;
	t->known = 1;
	return 0;
}

/* How many scopes keep this thread's identity, after a change of the number. */
static inline int fs_hold_identity(int change) { return fs_thread.depth += change; }
