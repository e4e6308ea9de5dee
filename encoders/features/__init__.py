"""Models, and the features of their layers."""
