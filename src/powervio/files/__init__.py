"""Safe directory trees, and the codecs of the protocols that carry files."""
