"""The command `kvstore restore`, which is also `kvctl snapshot restore`: its options, and what it prints."""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kvstore.config import ServerConfig, SettingsError, resolve
from kvstore.flags import SETTINGS

_FAILED = 1
_USAGE_ERROR = 2


def restore(
    path: Annotated[
        Path,
        typer.Option("--from", metavar="FILE", help="Of `kvctl snapshot save` or `etcdctl snapshot save`."),
    ],
    name: Annotated[str, typer.Option(help="Of this member.")] = "default",
    data_dir: Annotated[
        Path | None, typer.Option(help="The directory to make; must not exist. Default: NAME.kvstore")
    ] = None,
    initial_cluster: Annotated[
        str | None, typer.Option(help="name=url of every member of the new cluster. Default: this member alone")
    ] = None,
    initial_cluster_token: Annotated[
        str, typer.Option(help="Tells clusters apart: give one that no other cluster of these members had.")
    ] = SETTINGS["initial-cluster-token"].default,
    initial_advertise_peer_urls: Annotated[
        str, typer.Option(help="Of this member, as in --initial-cluster.")
    ] = SETTINGS["initial-advertise-peer-urls"].default,
    skip_hash_check: Annotated[
        bool, typer.Option("--skip-hash-check", help="For a copy of DATA/member/snap/db, which has no hash.")
    ] = False,
    bump_revision: Annotated[
        int, typer.Option(min=0, metavar="N", help="Begin N revisions above the file's newest; 1000000000 is usual.")
    ] = 0,
    mark_compacted: Annotated[
        bool, typer.Option("--mark-compacted", help="With --bump-revision: older revisions count as compacted.")
    ] = False,
) -> None:
    """Make a data directory for a member of a new cluster from a snapshot file, of etcd or of kvstore.

    Restore every member from the same file, each with its own --name and --initial-advertise-peer-urls and all with the
    same --initial-cluster and token; then start them with the same options. Keys, revisions, leases and users are the
    file's; the members are new. Give --bump-revision and --mark-compacted when clients may remember newer revisions
    of the old cluster, as Kubernetes does: they are told, and read anew.

    [bold]kvstore restore --from backup.db --data-dir data/a[/bold]

    [bold]kvstore restore --from backup.db --name a --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380
    --initial-advertise-peer-urls http://10.0.0.1:2380 --bump-revision 1000000000 --mark-compacted[/bold]
    """
    if bool(bump_revision) != mark_compacted:
        _fail("--bump-revision and --mark-compacted belong together: give both, or none", _USAGE_ERROR)
    given = {
        "name": name,
        "data-dir": str(data_dir or ""),
        "initial-cluster": initial_cluster or "",
        "initial-cluster-token": initial_cluster_token,
        "initial-advertise-peer-urls": initial_advertise_peer_urls,
    }
    try:
        config = resolve({flag: text for flag, text in given.items() if text}, {})
    except SettingsError as error:
        _fail(str(error), _USAGE_ERROR)
    _run(config, path, skip_hash_check, bump_revision)


def _run(config: ServerConfig, path: Path, skip_hash_check: bool, bump: int) -> None:
    from kvstore.kvctl.transfer import Progress
    from kvstore.server import restore as work

    os.umask(0o077)
    try:
        total = work.work_bytes(path, skip_hash_check=skip_hash_check)
        with Progress("restore", total, in_bytes=True) as progress:
            made = work.restore(config, path, skip_hash_check=skip_hash_check, bump=bump, told=progress.advance)
    except OSError as error:
        _fail(f"{path}: {error.strerror or error}", _FAILED)
    except work.RestoreError as error:
        _fail(str(error), _FAILED)
    loaded = made.loaded
    typer.echo(
        f"restored {loaded.keys} keys and {loaded.leases} leases at revision {loaded.revision} "
        f"(compacted: {loaded.compact_revision}) to {config.data_dir}"
    )
    typer.echo(f"member {made.member_id:x} of cluster {made.cluster_id:x}: start it with the same options")


def _fail(text: str, code: int) -> NoReturn:
    typer.echo(f"kvstore: {text}", err=True)
    raise typer.Exit(code)
