from powervio.vio.outbox import *
