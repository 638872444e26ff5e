"""The HTTP/1.1 side of a member: health, version and metrics, as etcd serves them."""
