from powervio.transport.crq.service import *
