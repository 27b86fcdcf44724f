// SPDX-License-Identifier: GPL-2.0
/*
 * A PAPR hypervisor that has these adapters itself: plpar_hcall, and the kernel's own VIO bus.
 *
 * Its device tree is the kernel's, so adapters come by the VIO bus, and each is put on ours.
 */
#include <linux/interrupt.h>
#include <linux/irqdomain.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/slab.h>
#include <asm/firmware.h>
#include <asm/hvcall.h>
#include <asm/vio.h>

#include "bus.h"

/* One adapter is one hypervisor here: interrupts and messages are the VIO device's. */
struct phyp {
	struct vvio_hv hv;
	struct vio_dev *vio;
};

static s64 phyp_call(struct vvio_hv *hv, bool may_sleep, u64 token, const u64 *arguments, unsigned int count,
		     u64 *results)
{
	unsigned long returned[PLPAR_HCALL9_BUFSIZE];
	u64 a[VVIO_REGISTERS] = { };
	unsigned int i;
	s64 code;

	memcpy(a, arguments, count * sizeof(*a));
	code = plpar_hcall9(token, returned, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
	for (i = 0; results && i < VVIO_REGISTERS; i++)
		results[i] = returned[i];
	return code;
}

/* An hcall is done when it returns. */
static u64 phyp_post(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count,
		     vvio_done_t *done, void *context)
{
	s64 code = phyp_call(hv, false, token, arguments, count, NULL);

	if (done)
		done(context, code);
	return 1;
}

static int phyp_wait(struct vvio_hv *hv, u64 number)
{
	return 0;
}

static irqreturn_t phyp_interrupt(int irq, void *data)
{
	struct vvio_source *source = data;

	source->handler(source);
	return IRQ_HANDLED;
}

static int phyp_request_source(struct vvio_hv *hv, struct vvio_source *source)
{
	unsigned int irq = irq_create_mapping(NULL, source->number);
	int err;

	if (!irq)
		return -EINVAL;
	err = request_irq(irq, phyp_interrupt, 0, "virtio_vio", source);
	if (err) {
		irq_dispose_mapping(irq);
		return err;
	}
	source->private = (void *)(unsigned long)irq;
	return 0;
}

static void phyp_free_source(struct vvio_hv *hv, struct vvio_source *source)
{
	unsigned long irq = (unsigned long)source->private;

	if (!irq)
		return;
	free_irq(irq, source);
	irq_dispose_mapping(irq);
	source->private = NULL;
}

static void phyp_synchronize_source(struct vvio_hv *hv, struct vvio_source *source)
{
	if (source->private)
		synchronize_irq((unsigned long)source->private);
}

static u64 phyp_logical(struct vvio_hv *hv, phys_addr_t address, size_t length)
{
	return address;
}

static __le64 *phyp_table(struct vvio_hv *hv, u32 liobn, u64 pages, const __le64 **use)
{
	return NULL;
}

static const struct vvio_hv_ops phyp_ops = {
	.call = phyp_call,
	.post = phyp_post,
	.wait = phyp_wait,
	.request_source = phyp_request_source,
	.free_source = phyp_free_source,
	.synchronize_source = phyp_synchronize_source,
	.logical = phyp_logical,
	.table = phyp_table,
};

static int phyp_probe(struct vio_dev *vio, const struct vio_device_id *id)
{
	struct vvio_node node = { .unit_address = vio->unit_address };
	u32 interrupts[2], pane[5];
	struct phyp *phyp;

	if (of_property_read_u32_array(vio->dev.of_node, "interrupts", interrupts, 2) ||
	    of_property_read_u32_array(vio->dev.of_node, "ibm,my-dma-window", pane, ARRAY_SIZE(pane))) {
		dev_err(&vio->dev, "the node has no interrupts or no ibm,my-dma-window\n");
		return -EINVAL;
	}
	phyp = devm_kzalloc(&vio->dev, sizeof(*phyp), GFP_KERNEL);
	if (!phyp)
		return -ENOMEM;
	phyp->hv.ops = &phyp_ops;
	phyp->hv.dev = &vio->dev;
	phyp->vio = vio;
	dev_set_drvdata(&vio->dev, phyp);
	node.interrupt = interrupts[0];
	node.liobn = pane[0];
	node.window = (u64)pane[3] << 32 | pane[4];
	vvio_bus_follow(&phyp->hv, &node, 1);
	return 0;
}

static void phyp_remove(struct vio_dev *vio)
{
	struct phyp *phyp = dev_get_drvdata(&vio->dev);

	vvio_bus_leave(&phyp->hv);
}

static const struct vio_device_id phyp_ids[] = {
	{ "virtio", "powervio,virtio" },
	{ "", "" }
};
MODULE_DEVICE_TABLE(vio, phyp_ids);

static struct vio_driver phyp_driver = {
	.id_table = phyp_ids,
	.probe = phyp_probe,
	.remove = phyp_remove,
	.name = "virtio_vio",
};

static bool is_registered;

int __init vvio_phyp_init(void)
{
	int err;

	if (!firmware_has_feature(FW_FEATURE_LPAR))
		return 0;
	err = vio_register_driver(&phyp_driver);
	is_registered = !err;
	return err;
}

void vvio_phyp_exit(void)
{
	if (is_registered)
		vio_unregister_driver(&phyp_driver);
}
