from powervio.transport.crq.redirect import *
