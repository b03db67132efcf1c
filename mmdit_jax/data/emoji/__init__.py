"""`emoji`: 3,139 real captioned images that ship with the package."""
