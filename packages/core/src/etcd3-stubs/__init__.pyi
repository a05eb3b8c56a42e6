from etcd3 import etcdrpc as etcdrpc
from etcd3.client import Etcd3Client as Etcd3Client
from etcd3.client import Transactions as Transactions
from etcd3.client import client as client
from etcd3.exceptions import Etcd3Exception as Etcd3Exception
from etcd3.leases import Lease as Lease
from etcd3.locks import Lock as Lock
from etcd3.members import Member as Member

__author__: str
__email__: str
__version__: str

__all__ = (
    "Etcd3Client",
    "Etcd3Exception",
    "Lease",
    "Lock",
    "Member",
    "Transactions",
    "client",
    "etcdrpc",
)
