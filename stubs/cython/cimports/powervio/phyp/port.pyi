from powervio.phyp.port import *
