"""The HTTP API, on Litestar.

Read ``app`` (the parts), then ``generations``. ``submit`` is the busiest route, outside Litestar;
``errors`` has the table of error responses, ``schemas`` the bodies, ``inputs`` their validation.
"""
