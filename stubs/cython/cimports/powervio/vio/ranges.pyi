from powervio.vio.ranges import *
