"""One account: its client, database, runs and facts, and when it runs by itself."""
