from powervio.phyp.records cimport AdapterRecord, PartitionRecord

cpdef int send_crq(PartitionRecord partition, object unit_address, unsigned long long high, unsigned long long low) except? -1
