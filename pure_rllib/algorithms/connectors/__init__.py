"""Learner connectors, one per file: from groups of episodes to advantages."""
