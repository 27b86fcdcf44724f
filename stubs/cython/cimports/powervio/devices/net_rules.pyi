from powervio.devices.net_rules import *
