"""Many tasks through one worker: nothing is lost, and its memory stays what it was."""
