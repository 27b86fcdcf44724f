from powervio.transport.crq.channels import *
