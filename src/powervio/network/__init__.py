"""What network devices stand on: ports that send and receive Ethernet frames."""
