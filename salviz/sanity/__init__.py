"""Sanity checks: maps of a net whose weights are randomised stage by stage, against those of the trained one.

Adebayo et al., NeurIPS 2018. What a page, the command line and a data set run ask for alike.
"""

from salviz.metrics.randomisation import CALIBRATION
from salviz.sanity.checks import Check, Checked
from salviz.sanity.running import check_randomisation

__all__ = ["CALIBRATION", "Check", "Checked", "check_randomisation"]
