"""The worker's edge: the streams that controllers and the profiler hold."""
