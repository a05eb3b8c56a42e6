# Written by packages/core/scripts/build_descriptors.py: change the .proto files instead.
# ruff: noqa
# fmt: off
from etcd_core.wire.messages import (
    Permission as Permission,
    Role as Role,
    User as User,
    UserAddOptions as UserAddOptions,
)
