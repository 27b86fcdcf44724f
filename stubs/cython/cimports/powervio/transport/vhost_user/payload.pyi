from powervio.transport.vhost_user.payload import *
