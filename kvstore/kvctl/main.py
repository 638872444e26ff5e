"""`kvctl`: the table of verbs, and the one place where a command line becomes an exit code.

All verbs' modules are imported at start: they are small, and bring no grpc and no protobuf (session.py).
"""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import typer

from kvstore.kvctl.commands.alarm_disarm import alarm_disarm
from kvstore.kvctl.commands.alarm_list import alarm_list
from kvstore.kvctl.commands.auth_disable import auth_disable
from kvstore.kvctl.commands.auth_enable import auth_enable
from kvstore.kvctl.commands.auth_status import auth_status
from kvstore.kvctl.commands.check_datascale import check_datascale
from kvstore.kvctl.commands.check_perf import check_perf
from kvstore.kvctl.commands.compact import compact
from kvstore.kvctl.commands.completion_install import completion_install
from kvstore.kvctl.commands.completion_show import completion_show
from kvstore.kvctl.commands.debug_log import debug_log
from kvstore.kvctl.commands.debug_state import debug_state
from kvstore.kvctl.commands.debug_trace import debug_trace
from kvstore.kvctl.commands.defrag import defrag
from kvstore.kvctl.commands.del_ import del_
from kvstore.kvctl.commands.downgrade_cancel import downgrade_cancel
from kvstore.kvctl.commands.downgrade_enable import downgrade_enable
from kvstore.kvctl.commands.downgrade_validate import downgrade_validate
from kvstore.kvctl.commands.elect import elect
from kvstore.kvctl.commands.endpoint_hashkv import endpoint_hashkv
from kvstore.kvctl.commands.endpoint_health import endpoint_health
from kvstore.kvctl.commands.endpoint_status import endpoint_status
from kvstore.kvctl.commands.export import export
from kvstore.kvctl.commands.get import get
from kvstore.kvctl.commands.history import history
from kvstore.kvctl.commands.import_ import import_
from kvstore.kvctl.commands.lease_grant import lease_grant
from kvstore.kvctl.commands.lease_keep_alive import lease_keep_alive
from kvstore.kvctl.commands.lease_list import lease_list
from kvstore.kvctl.commands.lease_revoke import lease_revoke
from kvstore.kvctl.commands.lease_timetolive import lease_timetolive
from kvstore.kvctl.commands.lock import lock
from kvstore.kvctl.commands.make_mirror import make_mirror
from kvstore.kvctl.commands.member_add import member_add
from kvstore.kvctl.commands.member_list import member_list
from kvstore.kvctl.commands.member_promote import member_promote
from kvstore.kvctl.commands.member_remove import member_remove
from kvstore.kvctl.commands.member_update import member_update
from kvstore.kvctl.commands.move_leader import move_leader
from kvstore.kvctl.commands.put import put
from kvstore.kvctl.commands.role_add import role_add
from kvstore.kvctl.commands.role_delete import role_delete
from kvstore.kvctl.commands.role_get import role_get
from kvstore.kvctl.commands.role_grant_permission import role_grant_permission
from kvstore.kvctl.commands.role_list import role_list
from kvstore.kvctl.commands.role_revoke_permission import role_revoke_permission
from kvstore.kvctl.commands.snapshot_save import snapshot_save
from kvstore.kvctl.commands.snapshot_status import snapshot_status
from kvstore.kvctl.commands.txn import txn
from kvstore.kvctl.commands.user_add import user_add
from kvstore.kvctl.commands.user_delete import user_delete
from kvstore.kvctl.commands.user_get import user_get
from kvstore.kvctl.commands.user_grant_role import user_grant_role
from kvstore.kvctl.commands.user_list import user_list
from kvstore.kvctl.commands.user_passwd import user_passwd
from kvstore.kvctl.commands.user_revoke_role import user_revoke_role
from kvstore.kvctl.commands.version import version
from kvstore.kvctl.commands.watch import watch
from kvstore.kvctl.failures import EXIT_CODES_HELP, ExitCode, Failure, usage
from kvstore.kvctl.session import report, root_options, verb
from kvstore.restore import restore

VERBS: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "put": put,
    "get": get,
    "del": del_,
    "txn": txn,
    "watch": watch,
    "compact": compact,
    "history": history,
    "import": import_,
    "export": export,
    "make-mirror": make_mirror,
    "lease grant": lease_grant,
    "lease revoke": lease_revoke,
    "lease keep-alive": lease_keep_alive,
    "lease timetolive": lease_timetolive,
    "lease list": lease_list,
    "lock": lock,
    "elect": elect,
    "member list": member_list,
    "member add": member_add,
    "member promote": member_promote,
    "member update": member_update,
    "member remove": member_remove,
    "move-leader": move_leader,
    "alarm list": alarm_list,
    "alarm disarm": alarm_disarm,
    "defrag": defrag,
    "downgrade validate": downgrade_validate,
    "downgrade enable": downgrade_enable,
    "downgrade cancel": downgrade_cancel,
    "endpoint status": endpoint_status,
    "endpoint health": endpoint_health,
    "endpoint hashkv": endpoint_hashkv,
    "snapshot save": snapshot_save,
    "snapshot status": snapshot_status,
    "check perf": check_perf,
    "check datascale": check_datascale,
    "auth enable": auth_enable,
    "auth disable": auth_disable,
    "auth status": auth_status,
    "user add": user_add,
    "user get": user_get,
    "user list": user_list,
    "user delete": user_delete,
    "user passwd": user_passwd,
    "user grant-role": user_grant_role,
    "user revoke-role": user_revoke_role,
    "role add": role_add,
    "role get": role_get,
    "role list": role_list,
    "role delete": role_delete,
    "role grant-permission": role_grant_permission,
    "role revoke-permission": role_revoke_permission,
    "debug log": debug_log,
    "debug state": debug_state,
    "debug trace": debug_trace,
    "completion show": completion_show,
    "completion install": completion_install,
    "version": version,
}
HIDDEN: Final[dict[str, Callable[..., Awaitable[None]]]] = {"compaction": compact}  # etcdctl's name for it
GROUPS: Final = {
    "lease": "Keys that go when nobody keeps them alive.",
    "member": "The members of the cluster.",
    "alarm": "What is wrong with the cluster, and taking it back.",
    "downgrade": "Going back to the minor version below, without a stop.",
    "endpoint": "State, health and hash of each endpoint.",
    "snapshot": "The state as a file, which a new cluster may begin with.",
    "check": "How much the cluster can do.",
    "auth": "Whether everybody is asked who it is.",
    "user": "Users, their passwords and their roles.",
    "role": "Roles, and the keys that they allow.",
    "debug": "What is in a stopped member's files, and in traces.",
    "completion": "Completion of verbs and options in bash, zsh and fish.",
}


def build() -> typer.Typer:
    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    # Typer learns the shells' protocols with its completion options, which we want only for the shells: ours is a verb.
    completing = "_KVCTL_COMPLETE" in os.environ
    app = typer.Typer(
        add_completion=completing, no_args_is_help=True, context_settings=settings, rich_markup_mode="rich"
    )
    app.callback(help=f"Use a kvstore or etcd cluster from the shell.\n\n{EXIT_CODES_HELP}")(root_options)
    groups = {name: typer.Typer(no_args_is_help=True, help=text) for name, text in GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for path, function in VERBS.items():
        *above, name = path.split()
        parent = groups[above[0]] if above else app
        parent.command(name, context_settings=settings, epilog=EXIT_CODES_HELP)(verb(function))
    # It works on files of this machine, and is a command of `kvstore` too.
    groups["snapshot"].command("restore", context_settings=settings)(restore)
    for name, function in HIDDEN.items():
        app.command(name, context_settings=settings, hidden=True)(verb(function))
    return app


def main() -> NoReturn:
    try:
        code = typer.main.get_command(build()).main(prog_name="kvctl", standalone_mode=False)
    except typer.TyperException as error:
        # What the parser of the command line refuses: an unknown option, a missing argument.
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "kvctl"
        # Without a message it is a group without a verb, whose help has been printed.
        text = error.format_message().rstrip(".")
        code = report(usage(f"{text}; see `{path} --help`")) if text else ExitCode.USAGE
    except typer.Abort:
        code = report(Failure("aborted"))
    sys.exit(code or 0)
