"""engines/kits."""
