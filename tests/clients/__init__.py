"""The clients of ``clients/``: one suite for the three of them, against a scripted server."""
