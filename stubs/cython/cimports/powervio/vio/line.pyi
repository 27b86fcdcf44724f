from powervio.vio.line import *
