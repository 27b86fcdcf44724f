from powervio.attach.p9_socket import *
