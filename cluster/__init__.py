"""Where a sweep runs. Nothing of ours is imported here, and Ray only inside functions."""
