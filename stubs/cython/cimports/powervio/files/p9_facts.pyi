from powervio.files.p9_facts import *
