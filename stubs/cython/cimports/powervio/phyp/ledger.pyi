from powervio.phyp.ledger import *
