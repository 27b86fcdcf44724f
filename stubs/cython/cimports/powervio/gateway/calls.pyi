from powervio.gateway.calls import *
