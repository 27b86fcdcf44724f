from powervio.bench.load import *
