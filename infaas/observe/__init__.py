"""Logs, metrics and traces, each declared in one place."""
