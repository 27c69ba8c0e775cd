"""Relevance propagated layer by layer."""
