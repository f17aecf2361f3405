"""Reports for people, rendered from records."""
