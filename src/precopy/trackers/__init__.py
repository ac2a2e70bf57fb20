"""Trackers: who knows first which pages were written. Each implements `precopy.ports.DirtyLog`."""
