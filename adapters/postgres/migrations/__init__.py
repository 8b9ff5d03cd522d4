"""Plain SQL, applied in the order of the file names. A file that was applied never changes."""
