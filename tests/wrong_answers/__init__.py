"""Plausible wrong answers to the tasks, one module for each notebook, see test_exercises.py."""
