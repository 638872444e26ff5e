"""Side by side with etcd on this machine: `make bench`."""
