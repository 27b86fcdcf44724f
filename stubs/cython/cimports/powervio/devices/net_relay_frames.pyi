from powervio.devices.net_relay_frames import *
