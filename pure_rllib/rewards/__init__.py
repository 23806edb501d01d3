"""Step scorers (process rewards) and verifiers (verifiable rewards)."""
