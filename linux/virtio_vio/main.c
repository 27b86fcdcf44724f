// SPDX-License-Identifier: GPL-2.0
/* virtio over CRQ, the client's end, for stock kernels. */
#include <linux/module.h>

#include "bus.h"

static int __init vvio_init(void)
{
	int err;

	err = bus_register(&vvio_bus);
	if (err)
		return err;
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
	return err;
}

static void __exit vvio_exit(void)
{
	vvio_gateway_exit();
	vvio_phyp_exit();
	driver_unregister(&vvio_driver);
	bus_unregister(&vvio_bus);
}

module_init(vvio_init);
module_exit(vvio_exit);
MODULE_DESCRIPTION("virtio over CRQ: devices of a VIO server partition");
MODULE_LICENSE("GPL");
