"""A caller's request for a picture, and the rules that it has to keep."""

import re
from dataclasses import dataclass

from domain.callers import Caller, CallerKind, Shopper
from domain.errors import InvalidInput
from domain.links import PUBLIC_LINKS, LinkRules, check_link
from domain.sessions import (
    DEFAULT_PROMPT,
    MAX_ACCESSORIES,
    MAX_PROMPT_LENGTH,
    GenerationInput,
)
from domain.uploads import leads_to_another_shopper

_KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TryOnRequest:
    """A caller's request for a picture. Only stores may give a prompt of their own.

    Raises ``InvalidInput``, which names the field.
    """

    caller: Caller
    request_id: str
    input: GenerationInput
    idempotency_key: str | None = None
    traceparent: str | None = None
    links: LinkRules = PUBLIC_LINKS

    def __post_init__(self) -> None:
        _check_input(self.input, self.caller, self.links)
        if self.idempotency_key is not None:
            check_key(self.idempotency_key)

    @property
    def stored_key(self) -> str | None:
        """The idempotency key as the session has it: a shopper's is apart from all others."""
        shopper = self.caller.shopper
        if shopper is None or self.idempotency_key is None:
            return self.idempotency_key
        return shopper.stored_key(self.idempotency_key)


def item_key(batch_key: str, index: int) -> str:
    """The key of a batch's item that has none of its own: a repeated batch repeats each item."""
    return f"{batch_key}/{index}"


def check_key(idempotency_key: str) -> None:
    """Raises ``InvalidInput``."""
    if not _KEY.fullmatch(idempotency_key):
        raise InvalidInput("Idempotency-Key", "must be 1 to 255 visible ASCII characters")


def _check_input(asked: GenerationInput, caller: Caller, links: LinkRules) -> None:
    check_link("model_image_url", asked.model_image_url, links)
    if asked.outfit_image_url is not None:
        check_link("outfit_image_url", asked.outfit_image_url, links)
    if len(asked.accessories) > MAX_ACCESSORIES:
        raise InvalidInput("accessories", f"at most {MAX_ACCESSORIES} are possible")
    for index, accessory in enumerate(asked.accessories):
        check_link(f"accessories[{index}].url", accessory.url, links)
    if asked.prompt != DEFAULT_PROMPT:
        _check_prompt(asked.prompt, caller)
    if caller.shopper is not None:
        _check_uploads(asked, caller.shopper, links)


def _check_uploads(asked: GenerationInput, shopper: Shopper, links: LinkRules) -> None:
    """Reject another shopper's upload. A store's uploads are read without their signature, so a
    link to one would do that had expired, or that lacks its signature."""
    fields = ["model_image_url"]
    if asked.outfit_image_url is not None:
        fields.append("outfit_image_url")
    fields += [f"accessories[{index}].url" for index in range(len(asked.accessories))]
    for field, url in zip(fields, asked.image_urls, strict=True):
        if leads_to_another_shopper(url, shopper.id) and links.is_own(url):
            raise InvalidInput(field, "is not an upload of this shopper")


def _check_prompt(prompt: str, caller: Caller) -> None:
    if caller.kind is not CallerKind.STORE:
        raise InvalidInput("prompt", "only stores may give a prompt of their own")
    if not prompt.strip() or len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInput("prompt", f"must be 1 to {MAX_PROMPT_LENGTH} characters")
