/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The messages of virtio over CRQ, and the blocks in the client's memory.
 * The normative text is docs/protocol.md; clauses of it are named P2.3 and so on.
 */
#ifndef VIRTIO_VIO_PROTOCOL_H
#define VIRTIO_VIO_PROTOCOL_H

#include <linux/types.h>

#define VVIO_HIGHEST_REVISION	1

/* Types of messages (P2.3). */
enum vvio_message {
	VVIO_PROBE		= 0x01,
	VVIO_ACKNOWLEDGE	= 0x02,
	VVIO_DRIVER		= 0x03,
	VVIO_FEATURES_OK	= 0x04,
	VVIO_FIND_VQS		= 0x05,
	VVIO_DRIVER_OK		= 0x06,
	VVIO_KICK		= 0x07,
	VVIO_CONFIG_WRITE	= 0x08,
	VVIO_CONFIG_READ	= 0x09,
	VVIO_RESET		= 0x0a,
	VVIO_FAILED		= 0x0b,
	VVIO_QUEUE_RESET	= 0x0c,
	VVIO_CHANNELS		= 0x0f,
	VVIO_USED		= 0xc1,
	VVIO_CONFIG_CHANGED	= 0xc2,
};

#define VVIO_REPLY		0x80
#define VVIO_EVENT		0xc0	/* both bits: sent by the server unasked */
#define VVIO_FLAG_BIG_ENDIAN	0x01	/* PROBE, revision 0 */

/* Status of a reply (P2.5). */
#define VVIO_STATUS_OK		0
#define VVIO_STATUS_BAD_FEATURES 5
#define VVIO_STATUS_DEVICE_ERROR 8

/* Device header of revision 0: the slides' structure, packed (P3.1). */
struct vvio_header0 {
	u8 type;
	u8 num_vqs;
	u8 vqs_size;
	__be32 device_features;
	__be32 guest_features;
	u8 config_len;
	u8 device_status;
} __packed;

/* Device header of revision 1 (P3.2). Feature words: bits 127 to 0. */
struct vvio_header1 {
	__be16 type;
	__be16 num_vqs;
	__be16 vqs_size;
	__be16 config_len;
	__be32 config_generation;
	u8 device_status;
	u8 reserved[3];
	__be64 device_features[2];
	__be64 driver_features[2];
} __packed;

/* Entry of the FIND_VQS block (P3.3). */
struct vvio_queue_entry {
	__be16 index;
	__be16 size;
	__be32 reserved;
	__be64 descriptors;
	__be64 available;
	__be64 used;
};

/* Entry of the CHANNELS block (P3.5). */
struct vvio_channel_entry {
	__be16 queue;
	__be16 generation;
	u8 status;
	u8 reserved[3];
	__be64 client;
	__be64 server;
	__be64 reserved2;
};

#define VVIO_CARRIED		1

/* First doubleword of a message: header, type, session number, then bytes 4-7. */
static inline u64 vvio_high(u8 type, u16 session, u32 rest)
{
	return 0x80ULL << 56 | (u64)type << 48 | (u64)session << 32 | rest;
}

#endif
