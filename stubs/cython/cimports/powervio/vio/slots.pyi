from powervio.vio.slots import *
