"""One thin module a protocol: wire format to `Call`, `Answer` to wire format. Imports no runtime."""
