/* Little-endian integers at any place in memory, and streams of bytes, for
 * loops without the interpreter lock. The interpreted stand-in is wire.py;
 * wire.pxd declares this. Calls give a result or the negative errno. */
#pragma once

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define WIRE_LE(bits, value) __builtin_bswap##bits(value)
#else
#define WIRE_LE(bits, value) (value)
#endif

#define WIRE_INTEGER(bits) \
	static inline uint##bits##_t wire_take##bits(const unsigned char *base, uint64_t offset) \
	{ \
		uint##bits##_t value; \
		memcpy(&value, base + offset, sizeof(value)); \
		return WIRE_LE(bits, value); \
	} \
	static inline void wire_put##bits(unsigned char *base, uint64_t offset, uint##bits##_t value) \
	{ \
		value = WIRE_LE(bits, value); \
		memcpy(base + offset, &value, sizeof(value)); \
	}

WIRE_INTEGER(16)
WIRE_INTEGER(32)
WIRE_INTEGER(64)

static inline uint8_t wire_take8(const unsigned char *base, uint64_t offset)
{ return base[offset]; }

static inline void wire_put8(unsigned char *base, uint64_t offset, uint8_t value)
{ base[offset] = value; }

static inline int64_t wire_receive(int fd, unsigned char *out, uint64_t offset, uint64_t size)
{
	ssize_t done;

	do {
		done = recv(fd, out + offset, size, 0);
	} while (done < 0 && errno == EINTR);
	return done < 0 ? -errno : done;
}

static inline int64_t wire_send(int fd, const unsigned char *data, uint64_t offset, uint64_t size)
{
	uint64_t sent = 0;

	while (sent < size) {
		ssize_t done = send(fd, data + offset + sent, size - sent, MSG_NOSIGNAL);

		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0)
			sent += (uint64_t)done;
	}
	return (int64_t)sent;
}
