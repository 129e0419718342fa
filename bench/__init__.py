"""The public benchmark: `make bench`, `make bench-quick`, `make bench-peers`."""
