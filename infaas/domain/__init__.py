"""Frozen values that every decision is made on. Imports the standard library only."""
