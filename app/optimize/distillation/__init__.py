"""A small network that learns from a version: `headway distill`."""
