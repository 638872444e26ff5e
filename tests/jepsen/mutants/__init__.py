"""Known bugs, put back into the server: the harness must see each of them. `make jepsen-mutants`."""
