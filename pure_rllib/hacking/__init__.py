"""Responses that game their rewards: flags, caps, and the monitor."""
