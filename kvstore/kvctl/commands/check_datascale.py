import asyncio
import ssl
import urllib.request
from contextlib import AsyncExitStack
from typing import Annotated, Final

import typer

from kvstore.kvctl.commands.put import argument_bytes
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.load import VALUE_BYTES, load_name, put_all
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import Settings, WriteOut
from kvstore.kvctl.transfer import Progress

SCALES: Final = {"s": (10_000, 50), "m": (100_000, 200), "l": (1_000_000, 500), "xl": (3_000_000, 1000)}
METRIC: Final = b"process_resident_memory_bytes"


async def check_datascale(
    session: Session,
    load: Annotated[str, typer.Option(help="s, m, l or xl: 10,000, 100,000, a million or three million keys.")] = "s",
    prefix: Annotated[str, typer.Option(help="Where the keys go; it has to be empty, and is emptied again.")] = (
        "/etcdctl-check-datascale/"
    ),
    auto_compact: Annotated[bool, typer.Option("--auto-compact", help="Compact afterwards.")] = False,
    auto_defrag: Annotated[bool, typer.Option("--auto-defrag", help="Taken; there is nothing to defragment.")] = False,
) -> None:
    """Put many keys, and tell how much more memory the first endpoint's member takes for them.

    Examples:

    kvctl check datascale

    kvctl check datascale --load m --auto-compact
    """
    session.simple_or_json("check datascale")
    keys, count = SCALES[load_name(load)]
    where = argument_bytes(prefix)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(session.client()) for _ in range(count)]
        if (await clients[0].get(where, prefix=True, count_only=True)).count:
            raise Failure(f"{prefix} has keys; delete them with `kvctl del {prefix} --prefix` first")
        before = await asyncio.to_thread(resident_bytes, session.settings)
        size = f"{keys} key-value pairs, {VALUE_BYTES} bytes per key-value, {count} concurrent clients"
        if session.write_out is WriteOut.SIMPLE:
            write(f"Start data scale check for work load [{size}].")
        try:
            with Progress("check datascale", keys) as progress:
                outcome = await put_all(clients, where, keys, 0, progress)
            after = await asyncio.to_thread(resident_bytes, session.settings)
        finally:
            deleted = await clients[0].delete(where, prefix=True, timeout=60)
        if auto_compact:
            await clients[0].compact(deleted.header.revision)
    used = (after - before) / (1 << 20)
    if session.write_out is WriteOut.JSON:
        write_json({"memory_megabytes": used, "errors": outcome.failures})
    elif not outcome.failures:
        write(f"PASS: Approximate system memory used : {used:.2f} MB.")
    else:
        write("FAIL: too many errors")
        for text, times in sorted(outcome.failures.items()):
            write(f"FAIL: ERROR({text}) -> {times}")
    if outcome.failures:
        raise typer.Exit(ExitCode.ERROR)


def resident_bytes(settings: Settings) -> float:
    """Of the first endpoint's member, by its /metrics."""
    endpoint = settings.endpoints[0]
    url = endpoint if "://" in endpoint else f"http{'s' if settings.asks_for_tls else ''}://{endpoint}"
    context = None
    if url.startswith("https://"):
        context = ssl.create_default_context(cafile=settings.cacert)
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
        if settings.insecure_skip_tls_verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(f"{url}/metrics", timeout=settings.command_timeout, context=context) as answer:
        for line in answer:
            if line.startswith(METRIC + b" "):
                return float(line.split()[1])
    raise Failure(f"{url}/metrics says nothing of {METRIC.decode()}; is it the clients' port of a member?")
