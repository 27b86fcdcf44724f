from powervio.vio.inbox import *
