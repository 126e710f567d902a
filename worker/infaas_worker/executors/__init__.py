"""What runs a variant: one contract, one file per runtime, found by entry point in the group `infaas.executors`."""
