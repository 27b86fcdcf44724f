from powervio.devices.net_loop import *
