from powervio.phyp.crq import *
