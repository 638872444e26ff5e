"""Looking into a member's data directory while no member runs on it, and into traces: what `kvctl debug` prints.

Nothing here writes. Every function gives plain values (dicts, lists, numbers, texts); the command decides their form.
"""
