from powervio.phyp.hcall_interrupt import *
