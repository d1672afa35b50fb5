"""Does one job on one MCP server with the Python SDK's client, and writes what it saw as JSON.

Jobs and answers are those of ../node/client.mjs.
"""

import json
import sys
import threading
from contextlib import AsyncExitStack
from datetime import timedelta

import anyio
import httpx
from mcp import ClientSession, McpError, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from answers import ROOTS, SAMPLED, elicited, plain

job = json.load(sys.stdin)
PATIENCE = timedelta(seconds=60)
asked, messages, updated = [], [], []


async def sample(_, params):
    asked.append({"method": "sampling/createMessage", "params": plain(params)})
    return types.CreateMessageResult(**SAMPLED)


async def elicit(_, params):
    asked.append({"method": "elicitation/create", "params": plain(params)})
    return types.ElicitResult(**elicited(params))


async def roots(_):
    asked.append({"method": "roots/list", "params": {}})
    return types.ListRootsResult(**ROOTS)


async def log(params):
    messages.append(plain(params))


async def notified(message):
    if isinstance(message, types.ServerNotification) and isinstance(message.root, types.ResourceUpdatedNotification):
        updated.append(plain(message.root.params))


async def connect(stack):
    """A connected session, the result of initialize, and the session id where there is one."""
    session_id = lambda: None
    if "url" in job:
        read, write, session_id = await stack.enter_async_context(streamable_http_client(job["url"]))
    else:
        child = StdioServerParameters(**job["stdio"])
        errlog = stack.enter_context(open("/dev/null", "w"))
        read, write = await stack.enter_async_context(stdio_client(child, errlog))
    info = types.Implementation(name="interop-python", version="1.0.0")
    session = await stack.enter_async_context(
        ClientSession(
            read,
            write,
            read_timeout_seconds=PATIENCE,
            client_info=info,
            logging_callback=log,
            message_handler=notified,
            **(dict(sampling_callback=sample, elicitation_callback=elicit, list_roots_callback=roots) if job.get("asks") else {}),
        )
    )
    return session, await session.initialize(), session_id()


async def answer(request):
    """The answer to one request: {result} or {error}."""
    try:
        return {"result": plain(await request)}
    except McpError as error:
        return {"error": plain(error.error)}


async def entries(key, request):
    """All entries of a list, page by page."""
    found, cursor = [], None
    while True:
        try:
            page = await request(params=types.PaginatedRequestParams(cursor=cursor) if cursor else None)
        except McpError as error:
            return {"error": plain(error.error)}
        found += plain(page)[key]
        cursor = page.nextCursor
        if cursor is None:
            return found


async def call(session, name, arguments=None, _meta=None, **more):
    return await session.call_tool(name, arguments, meta=_meta, **more)


async def progress(session):
    notifications = []

    async def note(progress, total, message):
        told = {"progress": progress, "total": total, "message": message}
        notifications.append({key: value for key, value in told.items() if value is not None})

    return {**await answer(call(session, **job["progress"], progress_callback=note)), "notifications": notifications}


async def cancel(session):
    """This SDK has no call for it: the notification is sent by hand after the first progress."""
    request = dict(job["cancel"])
    reason = request.pop("reason")
    started = anyio.Event()

    async def note(*_):
        started.set()

    outcome = {}
    async with anyio.create_task_group() as tasks:

        async def run():
            outcome.update(await answer(call(session, **request, progress_callback=note)))
            started.set()

        sent = session._request_id
        tasks.start_soon(run)
        await started.wait()
        params = types.CancelledNotificationParams(requestId=sent, reason=reason)
        await session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
        await session.send_ping()
        tasks.cancel_scope.cancel()
    # A proxy may end the request with an error, or leave it without an answer; a result would
    # mean that it was not cancelled.
    return outcome if "result" in outcome else {"rejected": outcome.get("error", {}).get("message", "no answer")}


async def complete(session, ref, argument, context=None):
    kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
    return await session.complete(kind(**ref), argument, (context or {}).get("arguments"))


async def until(done):
    """Waits for what comes by itself; the comparison tells if it did not."""
    with anyio.move_on_after(15):
        while not done():
            await anyio.sleep(0.02)


async def watch(session, uri, toggle=None):
    answers = [await answer(session.subscribe_resource(uri))]
    if toggle:
        await answer(call(session, **toggle))
        await until(lambda: updated and any(uri in str(message["data"]) for message in messages))
        await answer(call(session, **toggle))
        answers.append(await answer(session.set_logging_level("error")))
    answers.append(await answer(session.unsubscribe_resource(uri)))
    return answers


async def end_session(session, session_id, version):
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}

    async def send(method, id, body=None):
        headers = {
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": version,
            "mcp-session-id": id,
        }
        async with httpx.AsyncClient() as http:
            return (await http.request(method, job["url"], headers=headers, json=body)).status_code

    ended = {"unknown": await send("POST", "unknown", ping), "alive": await send("POST", session_id, ping)}
    ended["delete"] = await send("DELETE", session_id)
    ended["gone"] = await send("POST", session_id, ping)
    try:
        await session.send_ping()
        ended["ping"] = "answered"
    except McpError:
        ended["ping"] = "refused"
    async with AsyncExitStack() as stack:
        again, _, id_again = await connect(stack)
        ended["again"] = id_again != session_id and len((await again.list_tools()).tools)
    return ended


async def main():
    async with AsyncExitStack() as stack:
        session, initialized, session_id = await connect(stack)
        seen = {
            "initialize": plain(initialized),
            "tools": await entries("tools", session.list_tools),
            "resources": await entries("resources", session.list_resources),
            "templates": await entries("resourceTemplates", session.list_resource_templates),
            "prompts": await entries("prompts", session.list_prompts),
        }
        await session.send_ping()
        if "level" in job:
            seen["level"] = await answer(session.set_logging_level(job["level"]))
        if "progress" in job:
            seen["progress"] = await progress(session)
        if "cancel" in job:
            seen["cancel"] = await cancel(session)
        seen["calls"] = [await answer(call(session, **one)) for one in job.get("calls", [])]
        seen["reads"] = [await answer(session.read_resource(uri)) for uri in job.get("reads", [])]
        seen["gets"] = [await answer(session.get_prompt(**one)) for one in job.get("gets", [])]
        if "completes" in job:
            seen["completes"] = [await answer(complete(session, **one)) for one in job["completes"]]
        if "watch" in job:
            seen["watch"] = await watch(session, **job["watch"])
        await session.send_ping()
        seen.update(messages=messages, updated=updated, asked=asked)
        if job.get("session"):
            seen["session"] = await end_session(session, session_id, initialized.protocolVersion)
        print(json.dumps(seen), flush=True)
        told.set()


told = threading.Event()
try:
    anyio.run(main)
except BaseException:
    # A message that comes while the SDK closes a stdio transport fails in it, harmlessly.
    if not told.is_set():
        raise
