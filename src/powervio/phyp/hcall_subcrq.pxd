from powervio.phyp.records cimport PartitionRecord

cpdef int send_sub_crq(PartitionRecord partition, object unit_address, object cookie, unsigned long long dw0, unsigned long long dw1, unsigned long long dw2, unsigned long long dw3) except? -1
