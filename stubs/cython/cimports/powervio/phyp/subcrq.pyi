from powervio.phyp.subcrq import *
