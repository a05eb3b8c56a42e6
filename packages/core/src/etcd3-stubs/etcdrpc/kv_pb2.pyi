# Written by packages/core/scripts/build_descriptors.py: change the .proto files instead.
# ruff: noqa
# fmt: off
from etcd_core.wire.messages import (
    Event as Event,
    KeyValue as KeyValue,
)
