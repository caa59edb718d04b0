"""The artifact on disk: what is in its folder, and how it gets there."""
