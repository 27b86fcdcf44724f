"""Shipped for users' tests: partition pairs in memory, a deterministic scheduler, fault injection."""
