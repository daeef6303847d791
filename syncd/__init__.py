"""syncd mirrors a Billetweb account into a SQL database, every 15 minutes, by itself."""

__version__ = "0.2.0"
