"""What ``wearon doctor`` asks a provider: calls that cost nothing."""

from aiohttp import ClientError
from yarl import URL

from adapters.images.http import ProviderClient, api_root, unreachable
from domain.doctor import Finding, failed, ok, warning

_CONNECT_SECONDS = 4.0
SUBJECT = "provider"


def openai_model_url(base_url: str, model: str) -> URL:
    """https://platform.openai.com/docs/api-reference/models/retrieve"""
    return api_root(base_url) / "models" / model


def replicate_model_url(base_url: str, model: str) -> URL:
    """https://replicate.com/docs/reference/http#models.get"""
    owner, _, name = model.partition(":")[0].partition("/")
    return api_root(base_url) / "models" / owner / name


async def check_model(url: URL, *, key: str, variable: str, model: str) -> list[Finding]:
    """Whether the provider accepts the key and knows the model. ``variable`` is the key's.
    Raises ``ProviderUnavailable`` and ``WorkerExhausted``."""
    client = ProviderClient(key, connect_seconds=_CONNECT_SECONDS)
    try:
        async with client.session.get(url, allow_redirects=False) as response:
            status = response.status
    except (ClientError, OSError) as error:
        raise unreachable(error) from error
    finally:
        await client.close()
    return [_finding(status, host=url.host or "", variable=variable, model=model)]


def _finding(status: int, *, host: str, variable: str, model: str) -> Finding:
    if status == 200:
        return ok(SUBJECT, f"{host} accepts the key and knows the model {model}.")
    sentence = f"{host} answers {status} when asked for the model {model}."
    if status in {401, 403}:
        return failed(SUBJECT, sentence, f"{variable} is rejected: set a valid key.")
    if status in {404, 405}:
        # A compatible gateway need not have this call.
        return warning(SUBJECT, sentence, "Check the model's name, unless this is a gateway.")
    if status == 429:
        return warning(SUBJECT, sentence, "The provider's limit or quota is used up: look there.")
    return failed(SUBJECT, sentence, "Look at the provider's status page.")
