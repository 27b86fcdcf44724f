from powervio.phyp.physical import *
