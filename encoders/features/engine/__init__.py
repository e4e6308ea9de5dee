"""The loop from stimuli to stored rows."""
