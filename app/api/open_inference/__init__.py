"""The Open Inference Protocol, version 2, over HTTP, with the binary tensor extension.

https://github.com/kserve/open-inference-protocol; the extensions are described in
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""
