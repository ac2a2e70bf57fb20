"""Results as one HTML file: pictures, the tables beside them, and what they mean. Only this package uses jinja2."""

from precopy.report.html.page import Page, render
from precopy.report.html.reading import LARGEST

__all__ = ["LARGEST", "Page", "render"]
