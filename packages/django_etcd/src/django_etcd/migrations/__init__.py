"""No tables, only the state of the unmanaged model."""
