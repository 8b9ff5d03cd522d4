"""Published changes of sessions."""
