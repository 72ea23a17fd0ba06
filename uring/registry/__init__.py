"""What a ring is told through io_uring_register(2), by subject; `_base` is what they share."""
