"""The console's door: signing in and out, and what each request needs.

A handler states the role that it needs as its option ``role``. A handler without one is open to
anyone: only the pages for signing in and the static files, which a test lists.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath

from domain.console_access import SIGN_IN_LIFETIME, SignIn
from domain.console_ports import Role
from domain.errors import DomainMismatch, Forbidden, InvalidInput, RateLimited, Unauthenticated
from entrypoints.console.rendering import Pages, person_of, wants_json
from entrypoints.console.services import Services
from entrypoints.http.inputs import AnyRequest, Injected

PLAIN_COOKIE = "wearon-console"
SECURE_COOKIE = "__Secure-wearon-console"
LOGIN_PATH = "/console/login"
ROLE = "role"

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SAFE = {"GET", "HEAD"}


class NotSignedIn(Unauthenticated):
    """The page needs somebody who is signed in."""


def door(services: Services) -> Callable[[AnyRequest], Awaitable[None]]:
    """Checks each request before its handler. Raises ``NotSignedIn``, ``Forbidden`` and
    ``DomainMismatch``."""

    async def check(request: AnyRequest) -> None:
        needed: Role | None = request.route_handler.opt.get(ROLE)
        if request.method not in _SAFE:
            _check_site(request)
        if needed is None:
            return
        person = await _recognise(request, services)
        if person is None:
            raise NotSignedIn("Sign in first")
        request.scope["state"]["person"] = person
        if not person.role.includes(needed):
            raise Forbidden(f"This needs the role {needed}; yours is {person.role}")
        if request.method not in _SAFE:
            await _check_form(request, services, person)

    return check


async def _recognise(request: AnyRequest, services: Services) -> SignIn | None:
    header = services.setup.user_header
    if header is not None and (name := request.headers.get(header)):
        return await services.access.of_header(name)
    cookie = request.cookies.get(_cookie_name(request))
    return None if not cookie else await services.access.recognise(cookie)


def _check_site(request: AnyRequest) -> None:
    """Another site's page can make a browser send a form, but not without saying so."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site != "same-origin" or (origin is not None and urlsplit(origin).netloc != host):
        raise DomainMismatch("This form was not sent by a page of the console")


async def _check_form(request: AnyRequest, services: Services, person: SignIn) -> None:
    if services.setup.read_only and not request.route_handler.opt.get("reads"):
        raise Forbidden("This console is read-only: WEARON_CONSOLE_READ_ONLY is set")
    if not person.verified:
        raise Forbidden("The database does not answer, so no operator's role can be checked")
    token = (await request.form()).get("token", "")
    if not services.access.is_form_token(person, str(token)):
        raise DomainMismatch("The page is out of date: open it again, then repeat what you did")


@get(LOGIN_PATH)
async def show_login(request: AnyRequest, pages: Injected[Pages]) -> Response[Any]:
    return _login_page(request, pages, next_path=request.query_params.get("next", ""))


@post(LOGIN_PATH)
async def log_in(
    request: AnyRequest, services: Injected[Services], pages: Injected[Pages]
) -> Response[Any]:
    form = await request.form()
    name, password = str(form.get("name", "")), str(form.get("password", ""))
    next_path = str(form.get("next", ""))
    try:
        cookie = await services.access.sign_in(name, password, address=_address(request))
    except (Unauthenticated, RateLimited) as error:
        status = 429 if isinstance(error, RateLimited) else 401
        return _login_page(
            request, pages, next_path=next_path, name=name, problem=str(error), status=status
        )
    return _entered(request, cookie, _own_path(next_path))


@get("/console/link/{token:str}")
async def show_link(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    token: FromPath[str],
) -> Response[Any]:
    operator = await services.access.invited(token, address=_address(request))
    data = {"name": operator.name, "role": operator.role, "problem": ""}
    return pages.answer(request, "link.html", data)


@post("/console/link/{token:str}")
async def use_link(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    token: FromPath[str],
) -> Response[Any]:
    password = str((await request.form()).get("password", ""))
    address = _address(request)
    try:
        cookie = await services.access.set_password(token, password, address=address)
    except InvalidInput as error:
        operator = await services.access.invited(token, address=address)
        data = {"name": operator.name, "role": operator.role, "problem": str(error)}
        return pages.answer(request, "link.html", data, status=400)
    return _entered(request, cookie, "/console")


@get("/console/developer/{token:str}")
async def enter_as_developer(
    request: AnyRequest,
    services: Injected[Services],
    pages: Injected[Pages],
    token: FromPath[str],
) -> Response[Any]:
    """A page instead of a redirect: after a redirect from elsewhere, browsers do not send a strict
    cookie."""
    cookie = services.access.sign_in_developer(token)
    page = pages.answer(request, "signed_in.html", {"next": "/console"})
    page.cookies.append(_cookie(request, cookie))
    return page


@post("/console/logout", opt={ROLE: Role.VIEWER, "reads": True})
async def log_out(request: AnyRequest) -> Response[None]:
    expired = _cookie(request, "")
    expired.max_age = 0
    headers = {"Location": LOGIN_PATH}
    return Response(None, status_code=303, headers=headers, cookies=[expired])


LOGIN_HANDLERS = (show_login, log_in, show_link, use_link, enter_as_developer, log_out)


def to_login(request: AnyRequest) -> Response[None]:
    """For a page that was opened without a sign-in."""
    target = LOGIN_PATH
    if request.method in _SAFE and not wants_json(request):
        path = request.scope["path"]
        query = request.scope["query_string"].decode(errors="replace")
        target += "?next=" + quote(f"{path}?{query}" if query else path, safe="")
    return Response(None, status_code=303, headers={"Location": target})


def _login_page(
    request: AnyRequest,
    pages: Pages,
    *,
    next_path: str,
    name: str = "",
    problem: str = "",
    status: int = 200,
) -> Response[Any]:
    assert person_of(request) is None  # noqa: S101 - the door lets anyone see this page
    data = {"next": next_path, "name": name, "problem": problem}
    return pages.answer(request, "login.html", data, status=status)


def _entered(request: AnyRequest, cookie: str, path: str) -> Response[None]:
    headers = {"Location": path}
    return Response(None, status_code=303, headers=headers, cookies=[_cookie(request, cookie)])


def _own_path(path: str) -> str:
    """Where to go after signing in: only to a page of the console."""
    is_ours = path == "/console" or path.startswith(("/console/", "/console?"))
    return path if is_ours and path.isascii() and path.isprintable() else "/console"


def _cookie(request: AnyRequest, value: str) -> Cookie:
    return Cookie(
        key=_cookie_name(request),
        value=value,
        path="/console",
        httponly=True,
        secure=not _is_loopback(request),
        samesite="strict",
        max_age=int(SIGN_IN_LIFETIME.total_seconds()),
    )


def _cookie_name(request: AnyRequest) -> str:
    return PLAIN_COOKIE if _is_loopback(request) else SECURE_COOKIE


def _is_loopback(request: AnyRequest) -> bool:
    """Whether the browser reaches us on its own machine, where there is no TLS."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname in _LOOPBACK
    except ValueError:
        return False


def _address(request: AnyRequest) -> str:
    return request.client.host if request.client else ""
