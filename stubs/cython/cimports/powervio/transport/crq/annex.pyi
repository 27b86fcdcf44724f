from powervio.transport.crq.annex import *
