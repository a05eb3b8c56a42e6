from collections.abc import Iterable, Iterator, Sequence

from etcd3.client import Alarm, Etcd3Client

class Member:
    id: int
    name: str
    peer_urls: Sequence[str]
    client_urls: Sequence[str]
    def __init__(
        self,
        id: int,
        name: str,
        peer_urls: Sequence[str],
        client_urls: Sequence[str],
        etcd_client: Etcd3Client | None = None,
    ) -> None: ...
    def remove(self) -> None: ...
    def update(self, peer_urls: Iterable[str]) -> None: ...
    @property
    def active_alarms(self) -> Iterator[Alarm]: ...
