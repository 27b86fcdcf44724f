from powervio.transport.crq.driver_queue import *
