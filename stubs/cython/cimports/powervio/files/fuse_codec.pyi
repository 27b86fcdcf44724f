from powervio.files.fuse_codec import *
