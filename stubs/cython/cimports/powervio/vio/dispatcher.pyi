from powervio.vio.dispatcher import *
