from powervio.devices.net_in_hand import *
