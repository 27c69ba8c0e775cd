"""Batch: many pictures, models, methods and metrics, made by a worker of its own; launch, watch, and what was found."""

from salviz.ui import batch, frame, launch, panels, results

pick = frame.guard()
view = batch.look()
batch.header(view)
problems = [*pick.problems, *view.problems]
if view.standing is None:
    launch.form(problems)
else:
    panels.problems(problems)
    batch.status(view)
    results.show(view)
