"""Masks optimised for one image."""
