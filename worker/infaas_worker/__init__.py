"""The worker: owns the cores and memory of one machine and runs instances on them."""
