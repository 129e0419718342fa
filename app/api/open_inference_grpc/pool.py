"""Where the messages of this package are described: apart from those of a client library in the same process."""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]

POOL = DescriptorPool()
