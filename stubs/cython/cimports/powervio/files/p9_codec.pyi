from powervio.files.p9_codec import *
