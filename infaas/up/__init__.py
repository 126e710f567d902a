"""One machine, one command: what starts, watches, restarts and stops the programs of a local system."""
