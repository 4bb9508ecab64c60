"""Reports: the tables and pages people read."""
