from powervio.bench.net_copy import *
