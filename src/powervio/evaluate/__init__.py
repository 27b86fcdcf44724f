"""Looking at powervio from outside: what it does, shown and checked with programs that know nothing of it."""
