from powervio.files.tree_open import *
