"""As client.py, with the newer Python SDK, which speaks both eras: `era` of the job as in
../node/client2.mjs, where the differences are told."""

import json
import sys
import warnings

import anyio
from mcp import MCPError, StdioServerParameters, types
from mcp.client import Client
from mcp.client.stdio import stdio_client
from mcp.client.subscriptions import ToolsListChanged

from answers import ROOTS, SAMPLED, elicited, plain

warnings.simplefilter("ignore")  # of what the newest revision deprecates
job = json.load(sys.stdin)
asked, messages, updated = [], [], []
CHANGES = ["notifications/prompts/list_changed", "notifications/tools/list_changed"]


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
    if isinstance(message, types.ResourceUpdatedNotification):
        updated.append(plain(message.params))


async def answer(request):
    """The answer to one request: {result} or {error}."""
    try:
        return {"result": plain(await request)}
    except MCPError as error:
        return {"error": plain(error.error)}


async def entries(key, request):
    """All entries of a list, page by page."""
    found, cursor = [], None
    while True:
        try:
            page = await request(cursor=cursor)
        except MCPError as error:
            return {"error": plain(error.error)}
        found += plain(page)[key]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def call(client, name, arguments=None, _meta=None, **more):
    return await client.call_tool(name, arguments, meta=_meta, **more)


async def progress(client):
    notifications = []

    async def note(progress, total, message):
        told = {"progress": progress, "total": total, "message": message}
        notifications.append({key: value for key, value in told.items() if value is not None})

    return {**await answer(call(client, **job["progress"], progress_callback=note)), "notifications": notifications}


async def complete(client, ref, argument, context=None):
    kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
    return await client.complete(kind(**ref), argument, (context or {}).get("arguments"))


async def until(done):
    """Waits for what comes by itself; the comparison tells if it did not."""
    with anyio.move_on_after(15):
        while not done():
            await anyio.sleep(0.02)


async def watch(client, uri, toggle=None):
    answers = [await answer(client.subscribe_resource(uri))]
    if toggle:
        await answer(call(client, **toggle))
        await until(lambda: updated and any(uri in str(message["data"]) for message in messages))
        await answer(call(client, **toggle))
        answers.append(await answer(client.set_logging_level("error")))
    answers.append(await answer(client.unsubscribe_resource(uri)))
    return answers


async def listen(client):
    heard = set()
    try:
        async with client.listen(tools_list_changed=True, prompts_list_changed=True) as changes:
            for one in job["listen"]:
                await answer(call(client, **one))
            with anyio.move_on_after(15):
                async for change in changes:
                    heard.add(CHANGES[isinstance(change, ToolsListChanged)])
                    if len(heard) == len(CHANGES):
                        break
            return {"honored": plain(changes.honored), "heard": sorted(heard)}
    except MCPError as error:
        return {"error": plain(error.error)}


async def main():
    child = job.get("stdio")
    errlog = open("/dev/null", "w")
    client = Client(
        stdio_client(StdioServerParameters(**child), errlog) if child else job["url"],
        mode="2026-07-28" if job["era"] == "modern" else job["era"],
        client_info=types.Implementation(name="interop-python", version="2.0.0"),
        read_timeout_seconds=60,
        log_level=job.get("level"),
        logging_callback=log,
        message_handler=notified,
        **(dict(sampling_callback=sample, elicitation_callback=elicit, list_roots_callback=roots) if job.get("asks") else {}),
    )
    async with client:
        modern = client.protocol_version >= "2026"
        seen = {
            "initialize": {
                "protocolVersion": client.protocol_version,
                "capabilities": plain(client.server_capabilities),
                "instructions": client.instructions,
            },
            "tools": await entries("tools", client.list_tools),
            "resources": await entries("resources", client.list_resources),
            "templates": await entries("resourceTemplates", client.list_resource_templates),
            "prompts": await entries("prompts", client.list_prompts),
        }
        if "level" in job and not modern:
            seen["level"] = await answer(client.set_logging_level(job["level"]))
        if "progress" in job:
            seen["progress"] = await progress(client)
        seen["calls"] = [await answer(call(client, **one)) for one in job.get("calls", [])]
        seen["reads"] = [await answer(client.read_resource(uri)) for uri in job.get("reads", [])]
        seen["gets"] = [await answer(client.get_prompt(**one)) for one in job.get("gets", [])]
        if "completes" in job:
            seen["completes"] = [await answer(complete(client, **one)) for one in job["completes"]]
        if "watch" in job and not modern:
            seen["watch"] = await watch(client, **job["watch"])
        if "listen" in job and modern:
            seen["listen"] = await listen(client)
        seen.update(messages=messages, updated=updated, asked=asked)
        print(json.dumps(seen), flush=True)


anyio.run(main)
