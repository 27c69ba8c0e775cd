"""Attention of transformers, read as relevance."""
