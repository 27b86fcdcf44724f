from powervio.files.p9_fids import *
