from powervio.phyp.tce import *
