from powervio.memory.space import *
