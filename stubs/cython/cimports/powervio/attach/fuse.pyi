from powervio.attach.fuse import *
