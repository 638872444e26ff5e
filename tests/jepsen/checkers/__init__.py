"""Was what the clients saw possible? From the calls of a history to a list of complaints; empty means yes.

A file for each workload. What the register sees is judged by tests.e2e.checkers: linearizability of each key, blind to
headers, and the order of revisions.
"""
