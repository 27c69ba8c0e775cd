"""Salviz: `streamlit run app.py`."""

from salviz.ui import frame

frame.run()
