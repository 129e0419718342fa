"""A version as it is loaded: opened, tested, ready to answer."""
