"""The Open Inference Protocol's messages, in a package of our own so that tritonclient's can live beside them."""
