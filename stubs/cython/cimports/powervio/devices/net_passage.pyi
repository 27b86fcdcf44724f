from powervio.devices.net_passage import *
