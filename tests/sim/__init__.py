"""Simulations: of Raft alone (raft.testing.sim)."""
