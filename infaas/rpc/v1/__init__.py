"""Generated from proto/infaas/rpc/v1 by `make proto`; never edited."""
