"""What the pages share: the frame, pickers, caches and panels. The only part of Salviz that imports streamlit."""
