from powervio.phyp.dma_table import *
