"""Reading settings: YAML text, the outline of an experiment, the setters' sections."""
