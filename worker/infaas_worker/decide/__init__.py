"""The worker's rules: pure functions over frozen values. Time is an argument and nothing here waits."""
