"""Sanity checks: maps of a net whose weights, labels or class were randomised, against those of the trained one.

Adebayo et al., NeurIPS 2018; the class: Sixt et al., ICML 2020. What a page, the command line and a
data set run ask for alike.
"""

from salviz.metrics.randomisation import CALIBRATION
from salviz.sanity.checks import Check, Checked
from salviz.sanity.interventions import Intervention, OtherClass, Twin, checked_twin, is_cumulative, stage_names
from salviz.sanity.running import check_pictures, check_randomisation

__all__ = [
    "CALIBRATION",
    "Check",
    "Checked",
    "Intervention",
    "OtherClass",
    "Twin",
    "check_pictures",
    "check_randomisation",
    "checked_twin",
    "is_cumulative",
    "stage_names",
]
