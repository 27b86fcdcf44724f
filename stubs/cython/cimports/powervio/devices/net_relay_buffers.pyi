from powervio.devices.net_relay_buffers import *
