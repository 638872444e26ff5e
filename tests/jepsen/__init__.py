"""Members in network namespaces, faults between them, clients that remember, checkers: see docs/JEPSEN.md."""
