from powervio.phyp.redirect import *
