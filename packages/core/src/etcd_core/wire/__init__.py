"""The wire: messages, the channel with its endpoints and error classes, the etcd3 bridge."""
