from powervio.memory.target import *
