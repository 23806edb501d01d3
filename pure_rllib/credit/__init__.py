"""Credit assignment: pure functions on tensors, which know nothing of Ray."""
