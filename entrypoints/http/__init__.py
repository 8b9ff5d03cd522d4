"""The HTTP API, on Litestar.

Read ``app`` (what it is made of), then ``generations``; ``errors`` has the one table of failures,
``schemas`` what travels, ``inputs`` how what callers send becomes values.
"""
