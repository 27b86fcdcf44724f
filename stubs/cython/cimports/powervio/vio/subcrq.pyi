from powervio.vio.subcrq import *
