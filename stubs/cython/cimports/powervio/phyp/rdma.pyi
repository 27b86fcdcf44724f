from powervio.phyp.rdma import *
