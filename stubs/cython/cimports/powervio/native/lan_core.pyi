from powervio.native.lan_core import *
