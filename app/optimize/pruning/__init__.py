"""Zeros and fewer channels: `headway prune`."""
