from powervio.files.identity import *
