from powervio.gateway.mailbox import *
