"""What users see of results: JSON documents, tables, and live progress. Knows records, not how they came about."""
