"""What callers of the library may have to handle.

    RaftError
    +-- ConfigError          settings that contradict each other
    +-- ProposalDropped      nothing was appended; no leader, or a bound is reached
    |   +-- NotLeader        this node does not lead
    |   +-- TooManyProposals uncommitted_bytes_max is reached: wait and try again
    |   +-- ChangeRefused    a change of members is under way, comes too early, or makes no sense
    +-- Compacted            the entries asked for are no longer in the log
    +-- Stopped              the node was stopped while the caller waited
    +-- StorageError         the disk, or what is on it, cannot be trusted: the process must stop
        +-- Corrupt          damage where no crash can explain it
        +-- UnknownFormat    written by a version that this one does not know
        +-- InUse            another process has the directory open
    +-- MalformedMessage     bytes from a peer that no correct peer sends: the stream is cut
    +-- PeerRefused          a peer says that we may not take part (wrong cluster, lost disk)

Anything else that leaves the core is a bug, and the process dies of it.
"""


class RaftError(Exception):
    pass


class ConfigError(RaftError):
    pass


class ProposalDropped(RaftError):
    pass


class NotLeader(ProposalDropped):
    pass


class TooManyProposals(ProposalDropped):
    pass


class ChangeRefused(ProposalDropped):
    pass


class Compacted(RaftError):
    pass


class Stopped(RaftError):
    pass


class StorageError(RaftError):
    pass


class Corrupt(StorageError):
    pass


class UnknownFormat(StorageError):
    pass


class InUse(StorageError):
    pass


class MalformedMessage(RaftError):
    pass


class PeerRefused(RaftError):
    pass
