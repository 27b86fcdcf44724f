from powervio.transport.crq.remote import *
