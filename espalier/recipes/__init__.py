"""Recipes: one YAML file -> a typed experiment -> a run folder on disk, and comparisons made of many runs."""
