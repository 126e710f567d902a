"""The variant generator: turns a registered model into measured variants."""
