from powervio.phyp.hcall_rdma import *
