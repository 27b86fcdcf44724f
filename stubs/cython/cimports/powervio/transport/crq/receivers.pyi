from powervio.transport.crq.receivers import *
