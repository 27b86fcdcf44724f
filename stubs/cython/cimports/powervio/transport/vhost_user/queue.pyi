from powervio.transport.vhost_user.queue import *
