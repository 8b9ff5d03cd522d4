"""`wearon dev --in-memory`, as the clients see it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.started import Started
from tests.system.deployment import free_port


@dataclass(frozen=True, slots=True)
class Dev:
    """A running service, with the credentials of its demo user and store."""

    url: str
    user_token: str
    api_key: str
    playground: str

    @property
    def request(self) -> dict[str, str]:
        samples = f"{self.url}/samples"
        return {
            "model_image_url": f"{samples}/model.png",
            "outfit_image_url": f"{samples}/outfit.png",
        }


@contextmanager
def running_dev() -> Iterator[Dev]:
    started = Started("dev", "--in-memory", "--port", str(free_port()))
    try:
        banner = started.output_until(r"Ctrl-C stops")
        (url, *_) = re.findall(r"http://[\d.]+:\d+", banner)
        user_token, api_key = re.findall(r"Bearer ([^']+)'", banner)
        (playground,) = re.findall(r"^  (http://\S+/playground#\S+)$", banner, re.MULTILINE)
        yield Dev(url, user_token, api_key, playground)
    finally:
        code = started.end()
    assert code == 0
