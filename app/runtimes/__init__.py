"""Tensors in, tensors out: one module a backend."""
