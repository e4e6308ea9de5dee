"""Attention that routes tokens to brain regions, and what is learned across encoders."""
