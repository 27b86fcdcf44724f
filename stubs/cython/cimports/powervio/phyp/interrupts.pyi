from powervio.phyp.interrupts import *
