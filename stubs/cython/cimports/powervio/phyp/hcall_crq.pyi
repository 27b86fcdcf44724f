from powervio.phyp.hcall_crq import *
