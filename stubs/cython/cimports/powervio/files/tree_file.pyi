from powervio.files.tree_file import *
