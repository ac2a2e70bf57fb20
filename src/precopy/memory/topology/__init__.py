"""Regions, the flat views that they make, and the listeners that are told of changes."""
