"""Leases in time: when they expire. What they are, and which keys they hold, is state (kvstore/mvcc/leases.py)."""
