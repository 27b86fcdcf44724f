"""Ways to make a client partition usable on the host."""
