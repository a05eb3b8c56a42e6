"""What each operation costs beside its floor; the script ``bench`` prints the table."""
