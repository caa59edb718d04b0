"""The artifact on disk: the files in its folder, written atomically and checked when opened."""
