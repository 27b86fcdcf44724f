from powervio.memory.guard import *
