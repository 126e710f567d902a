"""The demo's model family: small, real classifiers of handwritten digits, and the held-out scans that score them."""
