from powervio.files.p9_stream import *
