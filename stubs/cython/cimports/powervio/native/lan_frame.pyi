from powervio.native.lan_frame import *
