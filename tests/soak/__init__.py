"""Many tasks through one worker: none is lost, and its memory does not grow."""
