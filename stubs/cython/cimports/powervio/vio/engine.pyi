from powervio.vio.engine import *
