"""The sweep: its file, search, engine, ledger and pages."""
