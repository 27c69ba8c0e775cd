"""What a run can measure of saliency maps: one measure a module, each with its settings and its place in the registry.

A measure sees pictures, not shards; it neither knows what was measured before nor where its rows go. A new one is a
module here, and every run, page and command has it.
"""

from salviz.runs.measures import cose, randomisation
from salviz.runs.measures.card import MEASURES, Item, Measure, Rows, Settings, Unreadable, Work, get

__all__ = ["MEASURES", "Item", "Measure", "Rows", "Settings", "Unreadable", "Work", "cose", "get", "randomisation"]
