from powervio.phyp.records import *
