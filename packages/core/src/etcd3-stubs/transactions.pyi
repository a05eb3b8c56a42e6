from collections.abc import Iterable

from etcd3.etcdrpc import Compare
from etcd3.leases import Lease
from typing_extensions import Self

# Here an operator builds a comparison and returns it, which is no bool and hashes as nothing.
class BaseCompare:
    key: str | bytes
    range_end: str | bytes | None
    value: str | bytes | int | None
    op: int | None
    __hash__: None  # type: ignore[assignment]
    def __init__(self, key: str | bytes, range_end: str | bytes | None = None) -> None: ...
    def __eq__(self, other: str | bytes | int) -> Self: ...  # type: ignore[override]
    def __ne__(self, other: str | bytes | int) -> Self: ...  # type: ignore[override]
    def __lt__(self, other: str | bytes | int) -> Self: ...
    def __gt__(self, other: str | bytes | int) -> Self: ...
    def build_message(self) -> Compare: ...

class Value(BaseCompare):
    def build_compare(self, compare: Compare) -> None: ...

class Version(BaseCompare):
    def build_compare(self, compare: Compare) -> None: ...

class Create(BaseCompare):
    def build_compare(self, compare: Compare) -> None: ...

class Mod(BaseCompare):
    def build_compare(self, compare: Compare) -> None: ...

class Put:
    key: str | bytes
    value: str | bytes
    lease: Lease | int | None
    prev_kv: bool
    def __init__(
        self,
        key: str | bytes,
        value: str | bytes,
        lease: Lease | int | None = None,
        prev_kv: bool = False,
    ) -> None: ...

class Get:
    key: str | bytes
    range_end: str | bytes | None
    def __init__(self, key: str | bytes, range_end: str | bytes | None = None) -> None: ...

class Delete:
    key: str | bytes
    range_end: str | bytes | None
    prev_kv: bool
    def __init__(
        self, key: str | bytes, range_end: str | bytes | None = None, prev_kv: bool = False
    ) -> None: ...

class Txn:
    compare: Iterable[BaseCompare]
    success: Iterable[Put | Get | Delete | Txn] | None
    failure: Iterable[Put | Get | Delete | Txn] | None
    def __init__(
        self,
        compare: Iterable[BaseCompare],
        success: Iterable[Put | Get | Delete | Txn] | None = None,
        failure: Iterable[Put | Get | Delete | Txn] | None = None,
    ) -> None: ...
