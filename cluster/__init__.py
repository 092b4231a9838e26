"""Where a sweep runs. Nothing of ours is imported here."""
