from powervio.phyp.records cimport PartitionRecord

cpdef unsigned int accept(PartitionRecord partition) except? -1
cpdef int eoi(PartitionRecord partition, unsigned long long value) except? -1
cpdef int cppr(PartitionRecord partition, unsigned long long priority) except? -1
