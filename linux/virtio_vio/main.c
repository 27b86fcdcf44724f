// SPDX-License-Identifier: GPL-2.0
/* virtio over CRQ, the client's end, for stock kernels. */
#include <linux/module.h>

#include <linux/delay.h>

#include "bus.h"

#define REPEAT_LIMIT	(5 * HZ)

s64 vvio_repeat(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count)
{
	unsigned long until = jiffies + REPEAT_LIMIT;
	s64 code;

	for (;;) {
		code = hv->ops->call(hv, true, token, arguments, count, NULL);
		if ((!papr_is_busy(code) && code != PAPR_RESOURCE) || time_after(jiffies, until))
			return code;
		msleep(papr_busy_msec(code));
	}
}

/* What lets go of adapters. */
struct workqueue_struct *vvio_release_wq;

static int __init vvio_init(void)
{
	int err;

	vvio_release_wq = alloc_workqueue("virtio_vio-release", WQ_UNBOUND, 0);
	if (!vvio_release_wq)
		return -ENOMEM;
	err = bus_register(&vvio_bus);
	if (err)
		goto no_bus;
	vvio_driver.bus = &vvio_bus;
	err = driver_register(&vvio_driver);
	if (err)
		goto no_driver;
	err = vvio_phyp_init();
	if (err)
		goto no_phyp;
	err = vvio_gateway_init();
	if (err)
		goto no_gateway;
	return 0;

no_gateway:
	vvio_phyp_exit();
no_phyp:
	driver_unregister(&vvio_driver);
no_driver:
	bus_unregister(&vvio_bus);
no_bus:
	destroy_workqueue(vvio_release_wq);
	return err;
}

static void __exit vvio_exit(void)
{
	vvio_gateway_exit();
	vvio_phyp_exit();
	driver_unregister(&vvio_driver);
	bus_unregister(&vvio_bus);
	destroy_workqueue(vvio_release_wq);
}

module_init(vvio_init);
module_exit(vvio_exit);
MODULE_DESCRIPTION("virtio over CRQ: devices of a VIO server partition");
MODULE_LICENSE("GPL");
