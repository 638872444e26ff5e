"""bbolt's file format: etcd's snapshots are such files. A library of its own: it knows pages, and nothing of etcd.

format.py   what a page looks like
writer.py   rows in, pages out, bottom-up; memory does not grow with the file
reader.py   a file that may be damaged or made to do harm, to rows
"""
