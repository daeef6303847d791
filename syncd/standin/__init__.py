"""A stand-in for Billetweb over real HTTP, for the demo and the tests."""
