"""The decisions on what was read. Pure: no I/O, no clock."""
