from powervio.network.switch_addresses import *
