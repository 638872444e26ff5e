"""Snapshot files: the state as a bbolt file that a real etcd takes, and such files as a state of ours.

schema.py      etcd's buckets and rows, both ways
revisions.py   which revisions survive a compaction, in little memory
save.py        the state of a member, pinned -> rows -> a file that is sent to a client
"""
