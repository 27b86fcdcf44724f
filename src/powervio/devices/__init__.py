"""Devices, one module for each device type: they run in VIO servers and know no transport."""
