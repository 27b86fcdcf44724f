from powervio.vio.dma import *
