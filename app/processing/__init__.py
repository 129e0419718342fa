"""Request content to tensors, and tensors to answers. Knows nothing of HTTP, of runtimes or of the registry."""
