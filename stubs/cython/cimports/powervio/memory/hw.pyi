from powervio.memory.hw import *
