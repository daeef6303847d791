"""What syncd says: where log lines go, in which form, and what is never in them."""
