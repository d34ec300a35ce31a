"""Evaluation: retrieval, probes, information bounds, and what they say about a binder."""
