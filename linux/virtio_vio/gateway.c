// SPDX-License-Identifier: GPL-2.0
/*
 * A hypervisor behind an ivshmem-doorbell device: the region, the device tree in it, and the
 * watch over whether it still answers.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "bus.h"
#include "gateway.h"
#include "tree.h"

static unsigned int stall_limit = 30;
module_param(stall_limit, uint, 0644);
MODULE_PARM_DESC(stall_limit, "Seconds without an answer after which the hypervisor is given up");

static bool shared_tce = true;
module_param(shared_tce, bool, 0444);
MODULE_PARM_DESC(shared_tce, "Write TCE tables in place where the hypervisor offers it");

#define WATCH	HZ

u64 gate_logical(struct vvio_hv *hv, phys_addr_t address, size_t length)
{
	struct gateway *gate = to_gateway(hv);
	unsigned int i;

	for (i = 0; i < gate->map_count; i++) {
		u64 guest = le64_to_cpu(gate->map[i].guest), room = le64_to_cpu(gate->map[i].length);

		if (address >= guest && address - guest < room && length <= room - (address - guest))
			return address - guest + le64_to_cpu(gate->map[i].logical);
	}
	return VVIO_UNREACHABLE;
}

#define DIRECTORY_ENTRIES	255
#define USE_WORDS		0x800

/* G9.1: a directory of {LIOBN, page of the area where its table is}, ended by LIOBN 0. */
__le64 *gate_table(struct vvio_hv *hv, u32 liobn, u64 pages, const __le64 **use)
{
	struct gateway *gate = to_gateway(hv);
	u64 room = le32_to_cpu(gate->header->tce_room), table;
	void *area = gate->region + le32_to_cpu(gate->header->tce_offset);
	const __le32 *entry = area;
	unsigned int i;

	if (!(gate->accepted & GATE_SHARED_TCE) || room < TCE_PAGE)
		return NULL;
	for (i = 0; i < DIRECTORY_ENTRIES && READ_ONCE(entry[0]); i++, entry += 2) {
		if (le32_to_cpu(READ_ONCE(entry[0])) != liobn)
			continue;
		table = (u64)le32_to_cpu(READ_ONCE(entry[1])) << TCE_SHIFT;
		if (!table || table > room || pages > (room - table) / sizeof(__le64))
			continue;
		*use = area + USE_WORDS + 8 * i;
		return area + table;
	}
	return NULL;
}

static int read_tree(struct gateway *gate, struct vvio_tree *tree)
{
	u32 offset = le32_to_cpu(gate->header->tree_offset);
	u32 length = le32_to_cpu(READ_ONCE(gate->header->tree_length));
	void *blob;
	int err;

	if (length > le32_to_cpu(gate->header->tree_room))
		return -EINVAL;
	blob = kvmalloc(length, GFP_KERNEL);
	if (!blob)
		return -ENOMEM;
	memcpy(blob, gate->region + offset, length);
	err = vvio_tree_read(blob, length, tree);
	kvfree(blob);
	return err;
}

/* Have as many adapters as the tree names. */
static int follow_tree(struct gateway *gate)
{
	struct vvio_tree tree;
	int err;

	err = read_tree(gate, &tree);
	if (err) {
		dev_err(&gate->pdev->dev, "the device tree cannot be read: %d\n", err);
		return err;
	}
	if (!gate->tree_source.number && tree.hot_plug_source) {
		gate->tree_source.number = tree.hot_plug_source;
		gate_request_source(&gate->hv, &gate->tree_source);
	}
	vvio_bus_follow(&gate->hv, tree.nodes, tree.count);
	vvio_tree_free(&tree);
	return 0;
}

static void tree_changed(struct vvio_source *source)
{
	struct gateway *gate = container_of(source, struct gateway, tree_source);

	schedule_work(&gate->tree_work);
}

static void tree_work(struct work_struct *work)
{
	struct gateway *gate = container_of(work, struct gateway, tree_work);
	s64 code;

	mutex_lock(&gate->tree_lock);
	code = vvio_call_patiently(&gate->hv, GATE_TREE);
	if (!code)
		follow_tree(gate);
	else if (!READ_ONCE(gate->hv.dead))
		dev_err(&gate->pdev->dev, "the hypervisor does not give the device tree: %lld\n", code);
	mutex_unlock(&gate->tree_lock);
}

/* G1.6 and G5.10: whether there is still somebody who answers. */
static void watch(struct work_struct *work)
{
	struct gateway *gate = container_of(work, struct gateway, watchdog.work);
	bool late, ended = le32_to_cpu(READ_ONCE(gate->header->state)) == GATE_ENDED;
	unsigned long flags;

	gate_reap(gate);
	spin_lock_irqsave(&gate->lock, flags);
	late = gate->reaped < gate->number && time_after(jiffies, gate->progress + stall_limit * HZ);
	spin_unlock_irqrestore(&gate->lock, flags);
	if (ended || late) {
		dev_err(&gate->pdev->dev, "the hypervisor %s\n",
			ended ? "has ended" : "does not answer any more");
		gate_bury(gate);
		vvio_bus_dead(&gate->hv);
		return;
	}
	schedule_delayed_work(&gate->watchdog, WATCH);
}

static int check_header(struct gateway *gate)
{
	struct gate_header *header = gate->header;
	u64 size = pci_resource_len(gate->pdev, 2);
	u64 slots = le32_to_cpu(header->slots), at = le32_to_cpu(header->slots_offset);
	u64 map = le32_to_cpu(header->map_offset), entries = le32_to_cpu(header->map_count);
	u64 tree = le32_to_cpu(header->tree_offset), tree_room = le32_to_cpu(header->tree_room);
	u64 tce = le32_to_cpu(header->tce_offset), tce_room = le32_to_cpu(header->tce_room);

	if (le64_to_cpu(header->magic) != GATE_MAGIC)
		return -ENODEV;		/* somebody else's ivshmem device */
	if (le32_to_cpu(header->version) != GATE_VERSION) {
		dev_err(&gate->pdev->dev, "the region has version %u; this driver knows %u\n",
			le32_to_cpu(header->version), GATE_VERSION);
		return -EINVAL;
	}
	if (le32_to_cpu(header->header_size) < sizeof(*header) || le64_to_cpu(header->region_size) != size ||
	    le32_to_cpu(header->slot_size) != sizeof(struct gate_slot) ||
	    !slots || slots & (slots - 1) || at + slots * sizeof(struct gate_slot) > size ||
	    map + entries * sizeof(struct gate_map_entry) > size || tree + tree_room > size ||
	    tce + tce_room > size || le32_to_cpu(header->hypervisor_peer)) {
		dev_err(&gate->pdev->dev, "the region's header makes no sense\n");
		return -EINVAL;
	}
	gate->count = slots;
	gate->slots = gate->region + at;
	gate->map = gate->region + map;
	gate->map_count = entries;
	return 0;
}

static void accept_features(struct gateway *gate)
{
	u64 wanted = le64_to_cpu(gate->header->offered);

	wanted &= GATE_FEATURE_DIRECT | (shared_tce ? GATE_SHARED_TCE : 0);
	if (gate->vectors <= GATE_FIRST_SOURCE)
		wanted &= ~GATE_FEATURE_DIRECT;
	if (wanted && !vvio_call(&gate->hv, GATE_FEATURES, wanted))
		gate->accepted = wanted;
}

static int gate_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct gateway *gate;
	int err;

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	gate = devm_kzalloc(&pdev->dev, sizeof(*gate), GFP_KERNEL);
	if (!gate)
		return -ENOMEM;
	gate->pdev = pdev;
	gate->hv.ops = &gate_ops;
	gate->hv.dev = &pdev->dev;
	gate->hv.follow = &gate->tree_work;
	gate->registers = pcim_iomap(pdev, 0, 0);
	if (!gate->registers || pci_resource_len(pdev, 2) < sizeof(struct gate_header))
		return -ENODEV;
	gate->region = devm_memremap(&pdev->dev, pci_resource_start(pdev, 2), pci_resource_len(pdev, 2),
				     MEMREMAP_WB);
	if (IS_ERR_OR_NULL(gate->region))
		return -ENOMEM;
	gate->header = gate->region;
	err = check_header(gate);
	if (err)
		return err;
	INIT_DELAYED_WORK(&gate->watchdog, watch);
	INIT_WORK(&gate->tree_work, tree_work);
	mutex_init(&gate->tree_lock);
	gate->tree_source.handler = tree_changed;
	err = gate_calls_init(gate);
	if (err)
		return err;
	pci_set_master(pdev);
	err = gate_interrupts_init(gate);
	if (err)
		goto no_interrupts;
	pci_set_drvdata(pdev, gate);
	accept_features(gate);
	dev_info(&pdev->dev, "partition %u, %u vectors%s%s\n", le32_to_cpu(gate->header->partition_id),
		 gate->vectors, gate->accepted & GATE_FEATURE_DIRECT ? ", directed" : "",
		 gate->accepted & GATE_SHARED_TCE ? ", shared TCE tables" : "");
	mutex_lock(&gate->tree_lock);
	err = follow_tree(gate);
	mutex_unlock(&gate->tree_lock);
	if (err)
		goto no_tree;
	schedule_delayed_work(&gate->watchdog, WATCH);
	schedule_work(&gate->tree_work);	/* what changed since this tree was made is told of once only */
	return 0;

no_tree:
	gate_free_source(&gate->hv, &gate->tree_source);
	gate_interrupts_exit(gate);
no_interrupts:
	gate_calls_exit(gate);
	return err;
}

static void gate_remove(struct pci_dev *pdev)
{
	struct gateway *gate = pci_get_drvdata(pdev);

	gate_free_source(&gate->hv, &gate->tree_source);
	cancel_work_sync(&gate->tree_work);
	vvio_bus_leave(&gate->hv);
	cancel_work_sync(&gate->tree_work);	/* who let go of an adapter asked for it */
	cancel_delayed_work_sync(&gate->watchdog);
	gate_interrupts_exit(gate);
	gate_calls_exit(gate);
}

static const struct pci_device_id gate_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x1110) },		/* ivshmem */
	{ }
};
MODULE_DEVICE_TABLE(pci, gate_ids);

static struct pci_driver gate_driver = {
	.name = "virtio_vio",
	.id_table = gate_ids,
	.probe = gate_probe,
	.remove = gate_remove,
};

int __init vvio_gateway_init(void)
{
	return pci_register_driver(&gate_driver);
}

void vvio_gateway_exit(void)
{
	pci_unregister_driver(&gate_driver);
}
