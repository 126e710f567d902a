"""Rules of the controller: pure functions over frozen values. Time, randomness and memory are arguments."""
