from powervio.files.wire import *
