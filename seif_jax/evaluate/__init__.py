"""Scores of a model: on evaluation sets, in a run."""
