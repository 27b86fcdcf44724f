from powervio.transport.crq.batch import *
