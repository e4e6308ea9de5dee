"""Encoders that read places of a stimulus: tokens on a grid."""
