"""Learner connectors, one per file: episodes -> rows -> returns -> advantages."""
