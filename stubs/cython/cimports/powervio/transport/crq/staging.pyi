from powervio.transport.crq.staging import *
