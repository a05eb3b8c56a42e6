"""Management commands of django-etcd."""
