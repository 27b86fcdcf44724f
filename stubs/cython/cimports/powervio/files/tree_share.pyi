from powervio.files.tree_share import *
