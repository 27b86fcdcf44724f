from powervio.phyp.hcall_subcrq import *
