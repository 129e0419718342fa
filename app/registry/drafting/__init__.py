"""A complete version made of a bare model file."""
