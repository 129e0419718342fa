"""Versions come into the registry directory, and leave it: whole or not at all."""
