"""Trackers: what notes first which pages were written. Each implements `precopy.ports.DirtyLog`."""
