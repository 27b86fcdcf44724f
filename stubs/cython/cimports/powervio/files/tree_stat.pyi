from powervio.files.tree_stat import *
