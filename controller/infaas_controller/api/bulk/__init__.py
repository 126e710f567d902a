"""Large requests and answers, read and written outside the process that serves (ADR 0014)."""
