"""``manage.py etcd ...``: the same commands as ``flask etcd ...``."""

from __future__ import annotations

import os
import sys

from django.core.management.base import BaseCommand, CommandError, handle_default_options

from ..._state import current_host


class Command(BaseCommand):
    """Hands its arguments to the click group of etcd-core."""

    help = "Look at what this application has in etcd: services, leaders, locks, config, doctor."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run a sub-command of the group; exits as click does."""
        try:
            from etcd_core.cli import build_group
        except ImportError as exc:
            raise SystemExit("manage.py etcd needs click: pip install 'etcd-core[cli]'") from exc
        program = os.path.basename(argv[0])
        program = "python -m django" if program == "__main__.py" else program
        # Django's own options may stand anywhere; the rest, --help included, is the group's.
        parser = self.create_parser(program, argv[1], add_help=False, allow_abbrev=False)
        options, words = parser.parse_known_args(argv[2:])
        handle_default_options(options)
        code = build_group(current_host).main(
            args=words, prog_name=f"{program} etcd", standalone_mode=not options.traceback
        )
        sys.exit(code)

    def handle(self, *args: object, **options: object) -> None:
        """Refuse ``call_command``: the functions of ``etcd_core.inventory`` are for code."""
        raise CommandError("run it from the command line, or use etcd_core.inventory")
