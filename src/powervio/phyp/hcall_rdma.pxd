from powervio.phyp.ledger cimport CostLedger
from powervio.phyp.records cimport PartitionRecord, WindowPane

cdef bint _beyond(WindowPane pane, unsigned long long ioba, unsigned long long length) noexcept
cdef CostLedger _account(PartitionRecord partition, WindowPane pane)
cpdef int copy_rdma(PartitionRecord partition, unsigned long long length, object s_liobn, unsigned long long s_ioba, object d_liobn, unsigned long long d_ioba) except? -1
cpdef int write_bytes(PartitionRecord partition, object liobn, unsigned long long ioba, bytes data) except? -1
