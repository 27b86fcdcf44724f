"""The hypervisor: partitions, virtual adapters, window panes, CRQs, remote DMA, interrupts, and the cost ledger.

`Hypervisor` is the way in. One hcall is one function, in the module of its PAPR function set (`hcall_tce`, `hcall_crq`,
`hcall_rdma`, `hcall_interrupt`, `hcall_vio`); further sets register themselves through `registry`.
"""
