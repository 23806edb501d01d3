"""Running an experiment: its folder, its loop, its sweeps and what is left behind."""
