"""What controller, generator and worker share about Triton servers that are attached, not managed (docs/triton.md)."""
