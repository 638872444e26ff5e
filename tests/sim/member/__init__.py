"""The whole member under simulation: the second level of the simulator.

Several members live on one event loop of virtual time, with the real code of a member from the service's handler
down to the log: services, KvServer, batcher, read barrier, raft.Node, applier, MVCC, watch hub. Simulated are what
surrounds it: time, chance, threads, the network, the log's file system, RocksDB (a map in memory that forgets at a
crash what was not flushed) and the clients.

    options.py   what a seed decides                 world.py      the cluster, phases and verdict
    loop.py      virtual time; who lives and pauses  member.py     one member, its lives, its data directory
    engine.py    the state's rows                    network.py    between members
    front.py     between clients and members         nemesis.py    faults (directed.py: several things in a row)
    clients.py   what clients ask                    watchers.py   what watchers ask
    leases.py    who holds leases, and their oracle  changes.py    an operator who changes the members
    checks.py    was what they saw possible?         marks.py      rare situations that must be met
    plan.py      run one                             cli.py        make sim LEVEL=member
"""
