from powervio.memory.uring import *
