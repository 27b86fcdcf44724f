from powervio.transport.crq.shadow import *
