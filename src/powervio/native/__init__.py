"""PowerVM's own adapters, for stock drivers and as comparators."""
