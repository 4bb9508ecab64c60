"""quality/judges."""
