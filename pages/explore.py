"""Explore: a model, a photograph, its map, and what becomes of the map when the image or the model changes."""

from salviz.ui import explore, frame, panels

pick = frame.guard()
view = explore.look(pick)
explore.header(view)
panels.problems(view.problems)
explore.status(view)
if view.exploration is None:
    explore.empty(view)
else:
    explore.pictures_and_variants(view)
    explore.turn(view)
