from powervio.memory.mapping import *
