cimport cython
from powervio.phyp.crq cimport ReceiveQueue
from powervio.phyp.dma_table cimport DmaOperation, DmaTable
from powervio.phyp.interrupts cimport InterruptPresentation
from powervio.phyp.ledger cimport CostLedger
from powervio.phyp.lock cimport HypervisorLock
from powervio.phyp.redirect cimport Link
from powervio.phyp.tce cimport TceTable

@cython.final
cdef class WindowPane:
    cdef readonly unsigned long long liobn
    cdef readonly unsigned long long size
    cdef readonly CostLedger ledger
    cdef public TceTable table
    cdef readonly bint remote
    cdef public CostLedger peer_ledger
    cdef public Link link

cdef class AdapterRecord:
    cdef public object partition
    cdef public CostLedger ledger
    cdef readonly InterruptPresentation interrupts
    cdef public object interrupt
    cdef public bint interrupt_enabled
    cdef public ReceiveQueue queue
    cdef public bint registered
    cdef public bint enabled
    cdef public object partner
    cdef int pulse(self) except? -1

cdef class PhysicalRecord

cdef class PartitionRecord:
    cdef readonly object hypervisor
    cdef public object memory
    cdef public dict panes
    cdef public dict physical
    cdef public dict adapters
    cdef public dict sources
    cdef public CostLedger ledger
    cdef public InterruptPresentation interrupts
    cdef readonly unsigned long long copy_limit
    cdef readonly int redirect_limit
    cdef public object area
    cdef public int pins
    cdef public bint alive
    cdef public bint waits
    cdef list _panes_at_hand
    cdef PhysicalRecord _engine_at_hand
    cdef WindowPane pane(self, object liobn)
    cdef PhysicalRecord engine(self, object liobn)
    cdef int unpin(self) except? -1

cdef class PhysicalRecord:
    cdef readonly object partition
    cdef readonly unsigned long long size
    cdef readonly unsigned long long liobn
    cdef readonly CostLedger ledger
    cdef readonly TceTable own
    cdef readonly DmaTable table
    cdef public bint alive
    cdef readonly int in_flight
    cdef readonly DmaOperation _spare
    cdef readonly object _hypervisor
    cdef readonly HypervisorLock _lock
    cdef DmaOperation begin_moves(self, object moves, unsigned long long count)
    cdef int end_here(self, DmaOperation operation, bint moved) except? -1
    cdef DmaOperation unused(self)
    cdef int refused(self, DmaOperation operation) except? -1
    cdef int begun(self, DmaOperation operation) except? -1
    cdef int ended(self, DmaOperation operation) except? -1
    cdef int _wake(self) except? -1

cdef class PortRecord:
    cdef readonly PartitionRecord _partition
    cdef readonly HypervisorLock _lock
