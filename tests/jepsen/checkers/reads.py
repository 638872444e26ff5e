"""Reads that are refused: `compacted` only what somebody has asked to be, `future` only what nobody has been told of.

What reads answer is judged with all other content (tests.e2e.checkers.check_revisions)."""

from __future__ import annotations

from tests.jepsen.record import NEVER, Call


def check_reads(calls: list[Call], others: int = NEVER) -> list[str]:
    """others: when a fault began that compacts up to the newest revision (ns)."""
    complaints: list[str] = []
    compactions = [call for call in calls if call.f == "compact"]
    first = min((call.revision for call in calls if call.ok), default=0)  # before that, faults were tried
    newest = sorted((call.returned, call.revision) for call in calls if call.ok)
    for call in calls:
        if call.f != "at":
            continue
        until = call.returned if call.returned != NEVER else call.invoked
        asked_for = any(one.invoked <= until and one.asked > call.asked for one in compactions)
        if call.error == "compacted" and not asked_for and until < others and call.asked >= first:
            complaints.append(f"compacted by nobody: {call}")
        if call.error == "future" and any(
            revision >= call.asked for returned, revision in newest if returned < call.invoked
        ):
            complaints.append(f"of the future, though it had been told: {call}")
        if call.ok and call.revision < call.asked:
            complaints.append(f"a header older than what it tells: {call}")
    if not compactions:
        complaints.append("nothing was compacted")
    return complaints
