"""What the endpoint verbs share: one question to each endpoint, all at once, answers in the given order."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from kvstore.client.errors import ClientError
from kvstore.kvctl.session import Session

if TYPE_CHECKING:
    from kvstore.client import Client

R = TypeVar("R")

Cluster: TypeAlias = Annotated[bool, typer.Option("--cluster", help="Ask all members, not only --endpoints.")]


async def targets(session: Session, cluster: bool) -> tuple[str, ...]:
    if not cluster:
        return session.settings.endpoints
    async with session.client() as client:
        # From the asked member's own state: the question must work without a leader, too.
        found = await client.member_list(linearizable=False)
    return tuple(url for member in found.members for url in member.client_urls)


async def ask_each(
    session: Session, urls: tuple[str, ...], question: Callable[["Client", str], Awaitable[R]]
) -> list[tuple[str, R | ClientError]]:
    async with session.client(urls) as client:

        async def ask(url: str) -> R | ClientError:
            try:
                return await question(client, url)
            except ClientError as error:
                return error

        return list(zip(urls, await asyncio.gather(*map(ask, urls)), strict=True))


def complain(what: str, url: str, error: ClientError) -> None:
    print(f"Failed to get the {what} of endpoint {url} ({error})", file=sys.stderr)
