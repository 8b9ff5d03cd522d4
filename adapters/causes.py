"""What may be said of an error of the operating system or the network in a cause."""

import errno
import os
import socket
import ssl

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Error numbers that are never the other side's fault."""


def detail_of(error: BaseException) -> str:
    """A few words without paths and addresses, such as ``no space left on device``."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS {error.reason or 'failed'}".lower().replace("tls", "TLS")
    if isinstance(error, socket.gaierror):
        return "host name not found"
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:
        return os_detail(number)
    return type(error).__name__


def os_detail(number: int) -> str:
    """The system's words for an error number."""
    return os.strerror(number).lower()
