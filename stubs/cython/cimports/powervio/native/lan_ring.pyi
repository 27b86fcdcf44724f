from powervio.native.lan_ring import *
