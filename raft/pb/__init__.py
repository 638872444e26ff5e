"""Generated code (`make proto`), and the descriptor pool that it lives in."""

from google.protobuf import descriptor_pool
from google.protobuf.internal import api_implementation

# The pure Python parser recurses without a bound on hostile input; only upb is safe to serve with.
if api_implementation.Type() != "upb":
    raise ImportError("protobuf runs without its upb parser; reinstall the protobuf wheel of this platform")

POOL = descriptor_pool.DescriptorPool()
