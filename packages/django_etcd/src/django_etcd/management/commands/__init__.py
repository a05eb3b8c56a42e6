"""``manage.py etcd``."""
