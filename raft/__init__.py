"""Raft, as a library: replicates bytes, knows no keys."""
