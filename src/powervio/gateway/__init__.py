"""phyp's front door for partitions that live in other processes: guests of QEMU, and processes that are partitions.

docs/gateway.md is the normative text; its clauses have ids (G1...), which the code cites.
"""
