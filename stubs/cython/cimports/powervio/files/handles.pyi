from powervio.files.handles import *
