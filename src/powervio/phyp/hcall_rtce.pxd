from powervio.phyp.dma_table cimport DmaTable
from powervio.phyp.records cimport PartitionRecord, WindowPane

cdef WindowPane _pane(PartitionRecord partition, object r_liobn, int index)
cdef bint _inside(unsigned long long size, unsigned long long ioba, unsigned long long count) noexcept
cdef int _redirect(PartitionRecord partition, WindowPane pane, DmaTable table, unsigned long long place, bytearray addresses, unsigned long long first, unsigned long long count) except? -1
cpdef object put_rtce(PartitionRecord partition, object r_liobn, unsigned long long r_ioba, object liobn, unsigned long long ioba, unsigned long long count)
cpdef object put_rtce_indirect(PartitionRecord partition, unsigned long long list_address, object r_liobn, object liobn, unsigned long long ioba, unsigned long long count)
cpdef int remove_rtce(PartitionRecord partition, object r_liobn, unsigned long long r_ioba, object liobn, unsigned long long ioba, unsigned long long count, unsigned long long tce) except? -1
