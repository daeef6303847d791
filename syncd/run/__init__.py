"""One run, from the list of events to the last ruling."""
