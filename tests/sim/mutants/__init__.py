"""Known bugs, put back one by one: the simulator must find each (`make mutants`).

A mutant is a TOML file: the scenario, the bug in words, and edits of files. Each `old` must occur
exactly once, so that a mutant which the code has outgrown is noticed.
"""
