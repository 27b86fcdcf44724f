from powervio.bench.load_9p import *
