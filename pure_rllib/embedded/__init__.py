"""The embedded default: chain arithmetic with a policy and a PRM trained from scratch."""
