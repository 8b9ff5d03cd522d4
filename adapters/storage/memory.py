"""Pictures in this process's memory."""

from adapters.storage.keys import artefact_of, possible_artefacts
from adapters.storage.signing import SignedReads, UrlSigner
from domain.errors import NotFound
from domain.ports import ImageStoragePort, Picture
from domain.sessions import Artefact


class InMemoryImageStorage(ImageStoragePort, SignedReads):
    """Gone at exit."""

    def __init__(self, *, signer: UrlSigner) -> None:
        self._pictures: dict[str, Picture] = {}
        self._signer = signer

    async def find(self, prefix: str) -> Artefact | None:
        for artefact in possible_artefacts(prefix):
            if artefact.object_key in self._pictures:
                return artefact
        return None

    async def save(self, prefix: str, picture: Picture) -> Artefact:
        kept = await self.find(prefix)
        if kept is not None:
            return kept
        artefact = artefact_of(prefix, picture.media_type)
        self._pictures[artefact.object_key] = picture
        return artefact

    async def delete(self, prefix: str) -> None:
        for artefact in possible_artefacts(prefix):
            self._pictures.pop(artefact.object_key, None)

    def url(self, object_key: str) -> str:
        return self._signer.url(object_key)

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        self._signer.check(object_key, expires=expires, signature=signature)
        if object_key not in self._pictures:
            raise NotFound("No such picture")
        return self._pictures[object_key]
