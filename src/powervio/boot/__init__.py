"""Stock Linux guests in QEMU: packages, kernel, root file system, command line, the running guest."""
