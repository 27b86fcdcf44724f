from powervio.network.switch_core import *
