"""Is the answer right? Math-Verify in worker processes."""
