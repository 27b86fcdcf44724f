"""Drivers, one module for each device type: they run in client partitions and know no transport."""
