"""PURE: min-form credit assignment with leave-one-out baselines, in RLlib."""
