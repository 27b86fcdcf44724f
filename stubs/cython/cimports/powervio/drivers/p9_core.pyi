from powervio.drivers.p9_core import *
