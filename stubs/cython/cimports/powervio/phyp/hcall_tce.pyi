from powervio.phyp.hcall_tce import *
