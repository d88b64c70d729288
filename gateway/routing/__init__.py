"""What should be served: pure decisions, without I/O, clock or randomness of their own."""
