"""PAPR as values: hcall tokens, return codes, TCEs, CRQ elements, device-tree nodes, and the hcall port. No state."""
