"""Models that go beyond the report, one per module."""

from .deep import DEEP

__all__ = ["DEEP"]
