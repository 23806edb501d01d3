"""What updates the policy: RLlib learners for whole responses."""
