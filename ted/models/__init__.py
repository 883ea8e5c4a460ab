"""Models: loading, building a student, and which layers are matched."""
