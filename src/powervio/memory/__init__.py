"""Memory that others see: accessors, mapped areas, and the abstract classes that hide where bytes are."""
