"""Billetweb's API: its requests, its limits and its spelling, which nobody else knows."""
