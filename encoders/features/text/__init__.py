"""Words in time: alignment with tokens, windows of context, surprisal."""
