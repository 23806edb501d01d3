"""The embedded default: chain arithmetic, a policy and a PRM made from scratch."""
