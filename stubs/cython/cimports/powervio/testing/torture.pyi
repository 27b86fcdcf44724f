from powervio.testing.torture import *
