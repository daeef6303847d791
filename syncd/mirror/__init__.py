"""What is decided of what was read. Pure: no I/O, no clock."""
