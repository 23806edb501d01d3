"""Environments of other packages; each is imported when it is used."""
