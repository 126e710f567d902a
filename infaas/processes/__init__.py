"""Several processes that are one program to the outside: they share ports and counters, and a master keeps them up."""
