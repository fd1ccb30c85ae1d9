"""langgraph on this pool: a graph that remembers each conversation, and each user in all of them.

Run it (it creates langgraph's tables):

    pip install psycopg-asyncpool psycopg_pool langgraph langgraph-checkpoint-postgres
    export DATABASE_URL=postgresql://localhost/postgres
    python examples/langgraph_memory.py ada monday "I like tea"
    python examples/langgraph_memory.py ada monday "and cake"      # the conversation goes on
    python examples/langgraph_memory.py ada friday "good morning"  # another one

langgraph asks for a psycopg_pool pool, which the pool of `asyncpool.compat` is too. The saver keeps
the state of each conversation, the store what a user said in all of them; both borrow from one
pool. A language model would take the place of `answer`.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypedDict
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg.rows import dict_row

from asyncpool.compat import AsyncConnectionPool

OPTIONS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
"""What langgraph expects of a connection."""


class Conversation(TypedDict):
    """The state of one conversation."""

    said: Annotated[list[str], operator.add]
    reply: str


@dataclass
class User:
    """Who speaks."""

    name: str


Graph: TypeAlias = CompiledStateGraph[Conversation, User, Any, Any]


async def answer(state: Conversation, runtime: Runtime[User]) -> dict[str, str]:
    """Remember the last message, and count what is remembered."""
    assert runtime.store is not None
    user = ("users", runtime.context.name)
    await runtime.store.aput(user, uuid4().hex, {"text": state["said"][-1]})
    known = await runtime.store.asearch(user, limit=1000)
    return {"reply": f"{len(state['said'])} in this conversation, {len(known)} from you in all"}


@asynccontextmanager
async def memory(pool: AsyncConnectionPool[Any]) -> AsyncIterator[Graph]:
    """The graph, with its tables created."""
    saver = AsyncPostgresSaver(pool)
    async with AsyncPostgresStore(pool) as store:
        await saver.setup()
        await store.setup()
        builder = StateGraph(Conversation, context_schema=User)
        builder.add_node("answer", answer)
        builder.add_edge(START, "answer")
        yield builder.compile(checkpointer=saver, store=store)


async def say(graph: Graph, user: str, conversation: str, text: str) -> str:
    """Say something in a conversation, and return the reply."""
    config: RunnableConfig = {"configurable": {"thread_id": f"{user}/{conversation}"}}
    state = await graph.ainvoke({"said": [text]}, config, context=User(user))
    return str(state["reply"])


async def main(user: str, conversation: str, text: str) -> None:
    """Print the reply to one message."""
    dsn = os.environ["DATABASE_URL"]
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=4, kwargs=OPTIONS) as pool,
        memory(pool) as graph,
    ):
        print(await say(graph, user, conversation, text))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
