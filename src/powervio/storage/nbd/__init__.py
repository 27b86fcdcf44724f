"""NBD without I/O: `protocol` has numbers and messages, `rules` what may be asked, `server` a connection's end."""
