"""Generated from proto/infaas/oip/v2 by `make proto`; never edited."""
