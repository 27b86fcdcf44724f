from powervio.transport.vhost_user.translate import *
