"""Pictures of a report: marks in units of their own, drawn as SVG by the templates."""
