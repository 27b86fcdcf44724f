from powervio.phyp.lock import *
