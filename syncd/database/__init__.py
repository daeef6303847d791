"""The mirror's database: SQLite or PostgreSQL, its tables and their queries."""
