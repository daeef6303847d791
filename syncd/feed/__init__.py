"""What leaves for others than Billetweb and the database."""
