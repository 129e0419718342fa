"""Fewer bits: `headway quantize`."""
