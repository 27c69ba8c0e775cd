"""Compare: one image explained by several methods, several models, or for its most probable classes."""

from salviz.ui import compare, frame, panels, rows

pick = frame.guard()
compare.header(pick)
chosen = rows.choose(pick)
panels.problems([*pick.problems, *chosen.problems])
view = compare.look(chosen, pick)
compare.status(view)
if view.comparison is None:
    compare.empty(view)
else:
    compare.grid(view)
    compare.agreement(view)
compare.support(view)
