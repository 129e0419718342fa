"""The Open Inference Protocol over gRPC, served by every worker beside HTTP.

Imported only where HEADWAY_GRPC_PORT is set, and only after the fork: gRPC has threads of its own, which no fork keeps.
"""
