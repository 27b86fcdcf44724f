from powervio.files.p9_session import *
