"""Measuring powervio: rates, and what a request costs in hypervisor calls."""
