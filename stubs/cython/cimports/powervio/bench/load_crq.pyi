from powervio.bench.load_crq import *
