"""Models of other packages and of other senses behind the one interface."""
