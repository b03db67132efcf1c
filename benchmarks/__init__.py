"""Measurements against peers and limits; nothing imports this package."""
