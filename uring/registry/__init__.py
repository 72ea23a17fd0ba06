"""What a ring is told through io_uring_register(2): `files` and `cancel`, so far."""
