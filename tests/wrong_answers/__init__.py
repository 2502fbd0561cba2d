"""Plausible wrong answers to the tasks, one module a notebook, see test_exercises.py."""
