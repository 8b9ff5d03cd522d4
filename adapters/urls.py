"""Reading the URLs of servers. What their parameters mean is in a table beside each client."""

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class InvalidUrl(ValueError):
    """``str(error)`` says in a sentence what is wrong. It never has a value of the URL."""


def problem_of(parse: Callable[[str], object], url: str | None) -> str | None:
    """What ``parse`` says is wrong with the URL, if there is one."""
    try:
        if url is not None:
            parse(url)
    except InvalidUrl as error:
        return str(error)
    return None


def split(url: str) -> tuple[SplitResult, dict[str, str]]:
    """The parts of ``url`` and its parameters; of a repeated one, the last. Raises ``InvalidUrl``
    if the password has a character that ends it too early."""
    parts = urlsplit(url)
    if parts.fragment or ("@" in parts.query and "@" not in parts.netloc):
        raise InvalidUrl("a `#` or `?` in the password must be written as `%23` or `%3F`")
    return parts, dict(parse_qsl(parts.query, keep_blank_values=True))


def joined(parts: SplitResult, parameters: Mapping[str, str]) -> str:
    """The URL of ``parts`` with only these parameters."""
    query = urlencode(parameters, quote_via=quote)
    # Not urlunsplit, which writes `unix:/run/...` without the two slashes.
    return f"{parts.scheme}://{parts.netloc}{parts.path}{'?' * bool(query)}{query}"


def refuse_unknown(given: Collection[str], known: Collection[str]) -> None:
    """Raise ``InvalidUrl`` for a parameter that is not known: to drop it could change what its
    author meant, and to pass it on is worse."""
    for name in given:
        if name not in known:
            nearest = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            raise InvalidUrl(f"the parameter `{name[:40]}` is not known{hint}")


def checked(parameters: Mapping[str, str], name: str, allowed: Mapping[str, str]) -> str | None:
    """What the parameter's value means; None if it is not given. Raises ``InvalidUrl``."""
    value = parameters.get(name)
    if not value:
        return None
    if value.lower() not in allowed:
        raise InvalidUrl(f"`{name}` must be one of {', '.join(f'`{each}`' for each in allowed)}")
    return allowed[value.lower()]


def words(*lines: str) -> frozenset[str]:
    """The names in a table."""
    return frozenset(" ".join(lines).split())


def same(*values: str) -> dict[str, str]:
    """Values that mean what they say."""
    return {value: value for value in values}
