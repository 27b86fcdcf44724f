from powervio.phyp.records cimport PartitionRecord, WindowPane
from powervio.phyp.tce cimport TceTable

cpdef int put_tce(PartitionRecord partition, object liobn, unsigned long long ioba, unsigned long long tce) except? -1
cpdef int stuff_tce(PartitionRecord partition, object liobn, unsigned long long ioba, unsigned long long tce, unsigned long long count) except? -1
cpdef int put_tce_indirect(PartitionRecord partition, object liobn, unsigned long long ioba, unsigned long long list_address, unsigned long long count) except? -1
