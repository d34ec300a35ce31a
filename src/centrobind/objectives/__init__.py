"""Objectives: anchors, the contrastive loss they share, and the joint objectives of others."""
