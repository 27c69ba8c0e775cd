"""Sanity checks: what becomes of maps when the net's weights are randomised, stage by stage."""

from salviz.ui import frame, panels, sanity

pick = frame.guard()
sanity.header(pick)
chosen = sanity.choose(pick)
view = sanity.look(chosen, pick)
panels.problems(view.problems)
sanity.status(view)
if view.found is None:
    sanity.empty(view)
else:
    sanity.results(view)
