from powervio.transport.crq.page_list import *
