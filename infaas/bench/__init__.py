"""Load and its figures: schedules, requirement sets, connections, the loops that send, and what may be said of it."""
