// SPDX-License-Identifier: GPL-2.0
/*
 * Reads a flattened device tree, as far as virtual adapters go. Kernels for x86 have no reader.
 *
 * The format: Devicetree Specification 0.4, chapter 5. All integers are big-endian.
 */
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

#include "tree.h"

#define FDT_MAGIC	0xd00dfeed
#define FDT_HEADER	40
#define FDT_BEGIN_NODE	1
#define FDT_END_NODE	2
#define FDT_PROP	3
#define FDT_NOP		4
#define FDT_END		9

#define MAX_DEPTH	8
#define MAX_ADAPTERS	4096

#define COMPATIBLE	"powervio,virtio"

/* What is known of the node that is being read. */
struct reading {
	struct vvio_node node;
	bool is_ours;
	unsigned int has;
};

#define HAS_REG		BIT(0)
#define HAS_INTERRUPT	BIT(1)
#define HAS_WINDOW	BIT(2)
#define HAS_ALL		(HAS_REG | HAS_INTERRUPT | HAS_WINDOW)

struct cursor {
	const u8 *at, *end;		/* of the structure block */
	const char *strings;
	size_t strings_length;
};

static bool take_cell(struct cursor *cursor, u32 *value)
{
	if (cursor->end - cursor->at < 4)
		return false;
	*value = get_unaligned_be32(cursor->at);
	cursor->at += 4;
	return true;
}

/* What takes bytes takes whole cells. */
static const u8 *take_bytes(struct cursor *cursor, size_t length)
{
	const u8 *found = cursor->at;

	if (length > cursor->end - cursor->at || ALIGN(length, 4) > cursor->end - cursor->at)
		return NULL;
	cursor->at += ALIGN(length, 4);
	return found;
}

static const char *take_name(struct cursor *cursor)
{
	size_t room = cursor->end - cursor->at;
	size_t length = strnlen(cursor->at, room);

	return length < room ? take_bytes(cursor, length + 1) : NULL;
}

static const char *string_at(struct cursor *cursor, u32 offset)
{
	if (offset >= cursor->strings_length)
		return NULL;
	if (strnlen(cursor->strings + offset, cursor->strings_length - offset) ==
	    cursor->strings_length - offset)
		return NULL;
	return cursor->strings + offset;
}

/* Whether a list of strings, each ended by NUL, has one. */
static bool has_string(const u8 *value, u32 length, const char *wanted)
{
	while (length) {
		size_t one = strnlen(value, length);

		if (one == length)
			return false;
		if (!strcmp(value, wanted))
			return true;
		value += one + 1;
		length -= one + 1;
	}
	return false;
}

static void read_property(struct reading *reading, const char *name, const u8 *value, u32 length)
{
	struct vvio_node *node = &reading->node;

	if (!strcmp(name, "reg") && length == 4) {
		node->unit_address = get_unaligned_be32(value);
		reading->has |= HAS_REG;
	} else if (!strcmp(name, "interrupts") && length >= 4) {
		node->interrupt = get_unaligned_be32(value);
		reading->has |= HAS_INTERRUPT;
	} else if (!strcmp(name, "compatible")) {
		reading->is_ours = has_string(value, length, COMPATIBLE);
	} else if (!strcmp(name, "ibm,loc-code") && length) {
		strscpy(node->location, value, min_t(size_t, length, sizeof(node->location)));
	} else if (!strcmp(name, "powervio,release")) {
		node->release = true;
	} else if (!strcmp(name, "ibm,my-dma-window") && length >= 20) {
		/* LIOBN, 2 cells of address, 2 of size */
		node->liobn = get_unaligned_be32(value);
		node->window = get_unaligned_be64(value + 12);
		reading->has |= HAS_WINDOW;
	}
}

static int keep(struct vvio_tree *tree, const struct vvio_node *node)
{
	struct vvio_node *nodes;

	if (tree->count == MAX_ADAPTERS)
		return -E2BIG;
	if (!(tree->count & (tree->count - 1))) {
		nodes = krealloc_array(tree->nodes, max(8u, 2 * tree->count), sizeof(*nodes), GFP_KERNEL);
		if (!nodes)
			return -ENOMEM;
		tree->nodes = nodes;
	}
	tree->nodes[tree->count++] = *node;
	return 0;
}

static bool begins(const char *name, const char *with)
{
	return name && !strncmp(name, with, strlen(with));
}

static int read_nodes(struct cursor *cursor, struct vvio_tree *tree)
{
	const char *path[MAX_DEPTH] = { };
	struct reading reading = { };
	unsigned int depth = 0;
	const char *name;
	const u8 *value;
	u32 token, length, offset;
	int err;

	while (take_cell(cursor, &token)) {
		switch (token) {
		case FDT_NOP:
			continue;
		case FDT_BEGIN_NODE:
			name = take_name(cursor);
			if (!name || depth == MAX_DEPTH)
				return -EINVAL;
			path[depth++] = name;
			memset(&reading, 0, sizeof(reading));
			continue;
		case FDT_PROP:
			if (!take_cell(cursor, &length) || !take_cell(cursor, &offset))
				return -EINVAL;
			value = take_bytes(cursor, length);
			name = string_at(cursor, offset);
			if (!value || !name || !depth)
				return -EINVAL;
			read_property(&reading, name, value, length);
			continue;
		case FDT_END_NODE:
			if (!depth)
				return -EINVAL;
			if (depth == 3 && begins(path[1], "vdevice") && reading.is_ours &&
			    reading.has == HAS_ALL) {
				err = keep(tree, &reading.node);
				if (err)
					return err;
			}
			if (depth == 3 && begins(path[1], "event-sources") &&
			    begins(path[2], "hot-plug-events") && reading.has & HAS_INTERRUPT)
				tree->hot_plug_source = reading.node.interrupt;
			memset(&reading, 0, sizeof(reading));
			depth--;
			continue;
		case FDT_END:
			return depth ? -EINVAL : 0;
		default:
			return -EINVAL;
		}
	}
	return -EINVAL;
}

/**
 * vvio_tree_read - find the adapters in a flattened device tree
 * @blob: the tree; nobody changes it meanwhile
 * @length: bytes that there are
 * @tree: what is found, to be freed with vvio_tree_free(); nothing when this fails
 *
 * Return: 0, -EINVAL for what is no tree, -ENOMEM or -E2BIG.
 */
int vvio_tree_read(const void *blob, size_t length, struct vvio_tree *tree)
{
	struct cursor cursor;
	u32 total, structure, strings, strings_length;
	int err;

	memset(tree, 0, sizeof(*tree));
	if (length < FDT_HEADER || get_unaligned_be32(blob) != FDT_MAGIC)
		return -EINVAL;
	total = get_unaligned_be32(blob + 4);
	structure = get_unaligned_be32(blob + 8);
	strings = get_unaligned_be32(blob + 12);
	strings_length = get_unaligned_be32(blob + 32);
	if (total > length || structure > total || strings > total || strings_length > total - strings)
		return -EINVAL;
	cursor.at = blob + structure;
	cursor.end = blob + total;
	cursor.strings = blob + strings;
	cursor.strings_length = strings_length;
	err = read_nodes(&cursor, tree);
	if (err)
		vvio_tree_free(tree);
	return err;
}

void vvio_tree_free(struct vvio_tree *tree)
{
	kfree(tree->nodes);
	memset(tree, 0, sizeof(*tree));
}
