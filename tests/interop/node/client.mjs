// Does one job on one MCP server with the TypeScript SDK's client, and writes what it saw as JSON.
//
// The job comes as JSON on stdin: `url` or `stdio` {command, args, env, cwd}, and, all optional:
// - `calls` [{name, arguments, _meta}], `reads` [uri], `gets` [{name, arguments}], `completes`
//   [{ref, argument, context}]: the answers to these;
// - `progress` {name, arguments}, `cancel` {name, arguments, reason}: one call each;
// - `asks` true: the client can sample, elicit and list roots, and answers the same every time;
// - `level`: from which on log messages are wanted;
// - `watch` {uri, toggle}: subscribes, and calls the tool that starts and ends updates, if any;
// - `session` true: what becomes of a session that is ended.
// The other clients here, and those in ../python, take the same jobs and answer in the same form.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
} from "@modelcontextprotocol/sdk/types.js";
import fs from "node:fs";
import { ask, until } from "./answers.mjs";

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const options = { timeout: 60_000 };
const asked = [];

/// A connected client, and `heard`: the messages that came, before the SDK reads them.
async function connect() {
  const transport = job.url
    ? new StreamableHTTPClientTransport(new URL(job.url))
    : new StdioClientTransport({ ...job.stdio, stderr: "ignore" });
  // None unless wanted: what a server offers can depend on them.
  const capabilities = job.asks ? ask.capabilities : {};
  const client = new Client({ name: "interop-typescript", version: "1.0.0" }, { capabilities });
  for (const schema of job.asks ? [CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema] : []) {
    client.setRequestHandler(schema, (request) => ask.answer(request, asked));
  }
  const heard = [];
  const start = transport.start.bind(transport);
  transport.start = async () => {
    const receive = transport.onmessage;
    transport.onmessage = (message, extra) => {
      heard.push(message);
      receive(message, extra);
    };
    await start();
  };
  await client.connect(transport, options);
  return { client, transport, heard };
}

const { client, transport, heard } = await connect();
const isAnswer = (message) => "result" in message || "error" in message;

/// Runs one request and gives the answer as it was on the wire, {result} or {error}, and its id.
///
/// The first with that id: server-everything's event store replays old answers when this SDK
/// resumes a stream, which it does after every error that came with an event id.
async function exchange(request) {
  const id = client._requestMessageId; // of the request that comes next
  let failure;
  await request().catch((error) => (failure = error));
  const message = heard.find((message) => message.id === id && isAnswer(message));
  if (message === undefined || (failure !== undefined && message.error === undefined)) {
    return { id, answer: { failed: String(failure ?? "no answer") } }; // or one that breaks its schema
  }
  const { result, error } = message;
  return { id, answer: error === undefined ? { result } : { error } };
}

const answer = async (request) => (await exchange(request)).answer;

/// All entries of a list, page by page.
async function list(key, request) {
  const entries = [];
  let cursor;
  do {
    const { result, ...other } = await answer(() => request(cursor === undefined ? undefined : { cursor }, options));
    if (!result) {
      return other;
    }
    entries.push(...result[key]);
    cursor = result.nextCursor;
  } while (cursor !== undefined);
  return entries;
}

const seen = {
  initialize: heard.find(isAnswer).result,
  tools: await list("tools", client.listTools.bind(client)),
  resources: await list("resources", client.listResources.bind(client)),
  templates: await list("resourceTemplates", client.listResourceTemplates.bind(client)),
  prompts: await list("prompts", client.listPrompts.bind(client)),
  calls: [],
  reads: [],
  gets: [],
};
await client.ping(options);
if (job.level) {
  seen.level = await answer(() => client.setLoggingLevel(job.level, options));
}
if (job.progress) {
  // Counted as they come: the SDK drops those whose answer stands in the same read.
  const onprogress = () => {};
  const { id, answer } = await exchange(() =>
    client.callTool(job.progress, CallToolResultSchema, { ...options, onprogress }),
  );
  const notifications = heard
    .filter(({ method, params }) => method === "notifications/progress" && params.progressToken === id)
    .map(({ params: { progressToken, ...rest } }) => rest);
  seen.progress = { notifications, ...answer };
}
if (job.cancel) {
  const { reason, ...call } = job.cancel;
  const controller = new AbortController();
  const onprogress = () => controller.abort(reason);
  seen.cancel = await client
    .callTool(call, CallToolResultSchema, { ...options, onprogress, signal: controller.signal })
    .then((result) => ({ result }), (error) => ({ rejected: error?.message ?? String(error) }));
  await client.ping(options);
}
for (const call of job.calls ?? []) {
  seen.calls.push(await answer(() => client.callTool(call, CallToolResultSchema, options)));
}
for (const uri of job.reads ?? []) {
  seen.reads.push(await answer(() => client.readResource({ uri }, options)));
}
for (const get of job.gets ?? []) {
  seen.gets.push(await answer(() => client.getPrompt(get, options)));
}
if (job.completes) {
  seen.completes = [];
  for (const one of job.completes) {
    seen.completes.push(await answer(() => client.complete(one, options)));
  }
}
const told = (method) => heard.filter((message) => message.method === method).map(({ params }) => params);
if (job.watch) {
  const { uri, toggle } = job.watch;
  seen.watch = [await answer(() => client.subscribeResource({ uri }, options))];
  if (toggle) {
    await answer(() => client.callTool(toggle, CallToolResultSchema, options));
    await until(() => told("notifications/resources/updated").length > 0);
    await until(() => told("notifications/message").some(({ data }) => String(data).includes(uri)));
    await answer(() => client.callTool(toggle, CallToolResultSchema, options));
    seen.watch.push(await answer(() => client.setLoggingLevel("error", options)));
  }
  seen.watch.push(await answer(() => client.unsubscribeResource({ uri }, options)));
}
await client.ping(options);
seen.messages = told("notifications/message");
seen.updated = told("notifications/resources/updated");
seen.asked = asked;

if (job.session) {
  const ping = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping" });
  const headers = (id) => ({
    accept: "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": transport.protocolVersion,
    "mcp-session-id": id,
  });
  const send = async (method, id, body) => {
    const response = await fetch(job.url, { method, headers: headers(id), body });
    await response.arrayBuffer();
    return response.status;
  };
  const id = transport.sessionId;
  const ended = { unknown: await send("POST", "unknown", ping), alive: await send("POST", id, ping) };
  ended.delete = await send("DELETE", id);
  ended.gone = await send("POST", id, ping);
  ended.ping = await client.ping(options).then(() => "answered", () => "refused");
  const again = await connect();
  ended.again = again.transport.sessionId !== id && (await again.client.listTools(undefined, options)).tools.length;
  await again.transport.terminateSession();
  await again.client.close();
  seen.session = ended;
}

await client.close();
fs.writeSync(1, JSON.stringify(seen));
process.exit(0);
