"""What users and files say in text: JSON and YAML read with limits, and the shapes of this project's own JSON files.

Read `text.py` first. Not here: tensors, and what any field means.
"""
