"""The command line: experiments, their folders, loops, sweeps."""
