from powervio.files.calls import *
