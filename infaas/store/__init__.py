"""Live metadata: who is there, what is published, who holds which lease. Nothing here is kept for good."""
