"""The VM autoscaler's shell: what is decided in `decide.fleet` is journaled, performed and explained here."""
