"""The command line: one verb, one file under commands/. main.py has the table of verbs, session.py what they share."""
