from powervio.drivers.p9_files import *
