from powervio.devices.net_relay import *
