from powervio.files.tree import *
