from typing import Any

from django_etcd.commands import LeaderOnlyCommand
from etcd_core import current_term


class Command(LeaderOnlyCommand):
    election = "report"

    def handle_as_leader(self, *args: Any, **options: Any) -> str:
        return f"ran under {current_term().token}"
