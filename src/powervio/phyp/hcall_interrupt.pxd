from powervio.phyp.records cimport AdapterRecord, PartitionRecord

cdef void _count(PartitionRecord partition, unsigned int source, int index)
cpdef unsigned int accept(PartitionRecord partition)
cpdef int eoi(PartitionRecord partition, unsigned long long value)
cpdef int cppr(PartitionRecord partition, unsigned long long priority)
