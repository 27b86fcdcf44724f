from powervio.devices.p9_serve import *
