from powervio.attach.fuse_p9 import *
