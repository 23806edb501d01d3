"""From prompts to judged groups of responses."""
