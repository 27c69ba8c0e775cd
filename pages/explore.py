"""Explore: a model, a photograph, its map, and what becomes of the map when the image or the model changes."""

from salviz.ui import explore, frame, panels
from salviz.ui.turn import turn
from salviz.ui.view import look

pick = frame.guard()
view = look(pick)
explore.header(view)
panels.problems(pick.problems)
explore.status(view)
if view.shown is None:
    explore.empty(view)
else:
    explore.pictures_and_variants(view.shown, is_running=view.is_running)
    turn(view.shown)
