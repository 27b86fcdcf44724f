from powervio.devices.net_forwarded import *
