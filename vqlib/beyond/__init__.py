"""What goes past the report: one model per module."""

from .deep import DEEP

__all__ = ["DEEP"]
