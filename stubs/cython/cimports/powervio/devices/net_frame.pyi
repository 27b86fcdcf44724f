from powervio.devices.net_frame import *
