"""Figures, live training curves, widgets and the report's transforms: not used by the library."""
