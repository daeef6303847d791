"""Where the mirror stands: SQLite or PostgreSQL, its tables and their queries."""
