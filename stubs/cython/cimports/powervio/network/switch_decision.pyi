from powervio.network.switch_decision import *
