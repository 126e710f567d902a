"""Builders, a manual clock and fakes for tests; every fake passes the contract suite of the real thing."""
