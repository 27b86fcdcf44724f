from powervio.transport.crq.remote_ring import *
