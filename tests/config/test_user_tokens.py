"""The settings of users' tokens, and what the composition root makes of them."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from config.container import Container
from config.loading import load_settings
from config.options import TokenAlgorithm
from config.policies import jwt, url_signer, user_keys
from config.settings import Settings, SettingsError
from domain.callers import Caller
from domain.errors import Unauthenticated, Unavailable
from entrypoints.http.server import application, services_of
from tests.support.examples import USER
from tests.support.sites import Site, answer, running_site
from tests.support.tokens import NOW, PREVIOUS_SECRET, SECRET, claims, es256, hs256, key_set, token

DEVELOPMENT = {"WEARON_ENVIRONMENT": "development"}
URL = "https://project.supabase.co/auth/v1/.well-known/jwks.json"
JWKS = {"WEARON_JWT_JWKS_URL": URL}


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ)
    return str(refused.value).splitlines()


def test_lists_are_separated_by_commas() -> None:
    """With or without spaces; each value is checked."""
    settings = load_settings(
        {"WEARON_JWT_ALGORITHMS": "ES256, EdDSA", "WEARON_JWT_ROLES": "authenticated,staff"}
    )

    assert settings.jwt_algorithms == (TokenAlgorithm.ES256, TokenAlgorithm.EDDSA)
    assert settings.jwt_roles == ("authenticated", "staff")
    assert load_settings({}).jwt_algorithms == tuple(TokenAlgorithm)


@pytest.mark.parametrize("value", ["HS256", "none", "es256", "ES256,", ",", "ES256;RS256", "RS512"])
def test_algorithms_are_those_of_key_pairs(value: str) -> None:
    """HS256 has a setting of its own, its secret."""
    assert problems_of({"WEARON_JWT_ALGORITHMS": value}) == [
        "WEARON_JWT_ALGORITHMS: must be one or more of `ES256`, `RS256`, `EdDSA`,"
        " separated by commas"
    ]


def test_roles_are_words() -> None:
    """An empty one would allow a token that claims no role in a way nobody meant."""
    assert problems_of({"WEARON_JWT_ROLES": "authenticated,"}) == [
        "WEARON_JWT_ROLES: must be one or more words, separated by commas"
    ]


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "https://id.example",
        "https://id.example:8443/keys?p=policy",
        "https://[::1]/keys",
        "https://10.0.0.1/keys",
    ],
)
def test_valid_urls(url: str) -> None:
    """The operator's own network is allowed: nobody else chooses this address."""
    assert load_settings({"WEARON_JWT_JWKS_URL": url}).jwt_jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        "id.example/keys",
        "file:///etc/passwd",
        "ftp://id.example/keys",
        "https://",
        "https://user:secret@id.example/keys",
        "https://id.example/keys#x",
        "https://id.example/k eys",
        "https://id.example/\r\nX: y",
        "https://\u0456d.example/keys",
        "https://id.example\\@evil.example/keys",
    ],
)
def test_invalid_urls(url: str) -> None:
    """No other scheme, no credential, and nothing that another parser could read differently."""
    assert problems_of({"WEARON_JWT_JWKS_URL": url}) == [
        f"WEARON_JWT_JWKS_URL: must be like `{URL}`"
    ]


def test_http_is_for_development_on_this_machine() -> None:
    """On the way from anywhere else the keys could be exchanged."""
    here, there = "http://127.0.0.1:9999/keys", "http://id.example/keys"
    https = "WEARON_JWT_JWKS_URL: must begin with https://"

    assert problems_of({"WEARON_JWT_JWKS_URL": here}) == [f"{https} in production"]
    assert problems_of(DEVELOPMENT | {"WEARON_JWT_JWKS_URL": there}) == [
        f"{https}, except for this machine"
    ]
    for url in (here, "http://localhost/keys", "http://[::1]:1/keys"):
        assert load_settings(DEVELOPMENT | {"WEARON_JWT_JWKS_URL": url}).jwt_jwks_url == url


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"WEARON_JWT_JWKS_URL": "https://id.example:99999/keys"},
            "WEARON_JWT_JWKS_URL: the port must be a number from 1 to 65535",
        ),
        (
            {"WEARON_JWT_JWKS_REFRESH_SECONDS": "600", "WEARON_JWT_JWKS_KEEP_SECONDS": "599"},
            "WEARON_JWT_JWKS_KEEP_SECONDS: must be at least WEARON_JWT_JWKS_REFRESH_SECONDS, or the"
            " keys would expire before they are fetched again",
        ),
        (
            JWKS | {"WEARON_JWT_PREVIOUS_SECRET": PREVIOUS_SECRET},
            "WEARON_JWT_PREVIOUS_SECRET: requires WEARON_JWT_SECRET",
        ),
        (
            {"WEARON_SIGNING_PREVIOUS_SECRET": PREVIOUS_SECRET},
            "WEARON_SIGNING_PREVIOUS_SECRET: requires WEARON_SIGNING_SECRET",
        ),
    ],
)
def test_contradictions_are_refused(environ: dict[str, str], problem: str) -> None:
    """Values that are valid on their own, but not together."""
    assert problems_of(environ) == [problem]


@pytest.mark.parametrize(
    ("environ", "required"),
    [
        ({}, ("jwt_secret",)),
        ({"WEARON_JWT_SECRET": SECRET}, ("jwt_secret",)),
        (JWKS, ()),
        (JWKS | {"WEARON_JWT_SECRET": SECRET}, ()),
    ],
)
def test_secret_or_key_set_is_required(environ: dict[str, str], required: tuple[str, ...]) -> None:
    """One of them, or both."""
    settings = load_settings(environ)

    assert settings.for_users == required
    if not environ:
        with pytest.raises(
            SettingsError, match=r"^WEARON_JWT_SECRET: must be set, or WEARON_JWT_J"
        ):
            jwt(settings)


def test_policies_take_the_settings() -> None:
    """Each value arrives where it is used."""
    settings = load_settings(
        JWKS
        | {
            "WEARON_JWT_ALGORITHMS": "RS256",
            "WEARON_JWT_SECRET": SECRET,
            "WEARON_JWT_PREVIOUS_SECRET": PREVIOUS_SECRET,
            "WEARON_JWT_ISSUER": "https://id",
            "WEARON_JWT_AUDIENCE": "them",
            "WEARON_JWT_ROLES": "staff",
            "WEARON_JWT_JWKS_REFRESH_SECONDS": "20",
            "WEARON_JWT_JWKS_KEEP_SECONDS": "70",
            "WEARON_SIGNING_SECRET": "signs the links to the pictures: 5647382910",
            "WEARON_SIGNING_PREVIOUS_SECRET": "signed the links before that: 1029384756",
        }
    )

    rules, keys, signer = jwt(settings), user_keys(settings), url_signer(settings, lambda: NOW)

    assert (rules.secret, rules.previous_secret) == (SECRET, PREVIOUS_SECRET)
    assert (rules.issuer, rules.audience, *rules.roles) == ("https://id", "them", "staff")
    assert (keys.algorithms, keys.refresh_seconds, keys.keep_seconds) == (("RS256",), 20, 70)
    assert signer.previous_secret == b"signed the links before that: 1029384756"


def container_for(site: Site, tmp_path: Path, **changes: Any) -> Container:
    values = dict.fromkeys(("database", "queue", "storage"), "memory")
    settings = load_settings(
        {f"WEARON_{name.upper()}": value for name, value in values.items()}
        | DEVELOPMENT
        | {
            "WEARON_JWT_JWKS_URL": site.url,
            "WEARON_JWT_ISSUER": "https://id/auth/v1",
            "WEARON_JWT_AUDIENCE": "them",
            "WEARON_SIGNING_SECRET": PREVIOUS_SECRET,
            "WEARON_DATA_DIR": str(tmp_path),
        }
        | changes
    )
    return Container(settings=settings)


@pytest.mark.anyio
async def test_api_fetches_the_keys_in_the_background(tmp_path: Path) -> None:
    """From its start on and without any request, until its end; readiness waits for the first one.
    In development the answer to a wrong token is exact."""
    pair, exp = es256("es"), time.time() + 60
    async with running_site() as site:
        site.serve(answer(key_set(pair.named("es"))))
        container = container_for(site, tmp_path)
        check = services_of(container).readiness["user_keys"]
        with pytest.raises(Unavailable):
            await check()
        requests_before = len(site.requests)
        async with application(container).lifespan(), asyncio.timeout(20):
            while not await is_ready(check):  # noqa: ASYNC110 - its request sets no event
                await asyncio.sleep(0.005)
            header = {"alg": "ES256", "kid": "es"}
            accepted = await container.authenticate()(token(claims(exp=exp), header, pair.sign))
            with pytest.raises(Unauthenticated, match=r"^aud: must be or contain `them`$"):
                await container.authenticate()(token(claims(exp=exp, aud="x"), header, pair.sign))
            with pytest.raises(Unauthenticated, match=r"^alg: must be ES256 or RS256 or EdDSA$"):
                await container.authenticate()(hs256(exp=exp))

    assert accepted == Caller(owner=USER, any_origin=True)
    assert (requests_before, len(site.requests)) == (0, 1)
    assert [task for task in asyncio.all_tasks() if "UserKeys" in repr(task.get_coro())] == []


@pytest.mark.anyio
async def test_api_ends_while_a_fetch_hangs(tmp_path: Path) -> None:
    """Without waiting for it, and without leaving it behind."""
    async with running_site() as site, asyncio.timeout(20):
        site.serve(hangs=True)
        async with application(container_for(site, tmp_path)).lifespan():
            while not site.requests:  # noqa: ASYNC110 - a request sets no event
                await asyncio.sleep(0.005)

        assert [task for task in asyncio.all_tasks() if "UserKeys" in repr(task.get_coro())] == []


async def is_ready(check: Any) -> bool:
    try:
        await check()
    except Unavailable:
        return False
    return True


def test_without_a_key_set_there_is_nothing_to_fetch() -> None:
    """And no check of readiness."""
    container = Container(
        settings=Settings(
            **dict.fromkeys(("database", "queue", "storage"), "memory"),  # type: ignore[arg-type]
            environment="development",  # type: ignore[arg-type]
            jwt_secret=SECRET,
            signing_secret=PREVIOUS_SECRET,
        )
    )

    assert container.user_keys() is None
    assert services_of(container).readiness.keys() == {"database", "queue"}


def test_only_a_secret_mints_tokens() -> None:
    """The private keys of the set are its owner's."""
    container = Container(settings=load_settings(JWKS))

    with pytest.raises(ValueError, match="only a token that the HS256 secret signs"):
        container.user_token()(USER.id, now=NOW, lifetime=NOW - NOW)  # type: ignore[arg-type]
