"""The report: one self-contained page about a sweep, written once or served live."""
