"""Generated: see scripts/stubs.sh."""
