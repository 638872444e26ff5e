"""Who may do what: users, roles, ranges of keys, tokens.

`table.py` is replicated state, `changes.py` and `manage.py` how the log changes it, `requests.py` what a request
touches, `methods.py` what each RPC needs. `tokens.py` and `jwt.py` are how a caller proves who it is; they are told
the time.
"""
