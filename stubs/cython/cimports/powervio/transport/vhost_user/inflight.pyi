from powervio.transport.vhost_user.inflight import *
