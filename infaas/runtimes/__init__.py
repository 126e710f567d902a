"""What profiler and worker must do alike for a promise measured by one to hold in the other."""
