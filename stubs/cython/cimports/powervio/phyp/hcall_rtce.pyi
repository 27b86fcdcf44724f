from powervio.phyp.hcall_rtce import *
