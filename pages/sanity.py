"""Sanity checks: what becomes of maps when the net's weights are randomised, stage by stage."""

from salviz.ui import frame, panels, sanity

pick = frame.guard()
sanity.header(pick)
chosen = sanity.choose(pick)
panels.problems([*pick.problems, *chosen.problems])
view = sanity.look(chosen, pick)
sanity.status(view)
if view.found is None:
    sanity.empty()
else:
    sanity.results(view)
