from powervio.devices.net_relay_end import *
