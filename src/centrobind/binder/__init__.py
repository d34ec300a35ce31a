"""Binder: how values become tensors, encoders and towers, and how a binder is kept and embeds."""
