// As client.mjs, with the newer TypeScript SDK, which speaks both eras: `era` of the job is what
// its client is told to speak, "legacy", "auto" or "modern".
//
// In the modern era there is no session: `level` goes with every call, `watch` is not asked for,
// and `listen` [{name, arguments}] calls these while it listens to changes of tools and prompts.

import { Client, LOG_LEVEL_META_KEY, ProtocolError, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import fs from "node:fs";
import { ask, until } from "./answers.mjs";

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const options = { timeout: 60_000 };
const QUESTIONS = ["sampling/createMessage", "elicitation/create", "roots/list"];
const heard = []; // all messages, before the SDK reads them

const transport = job.url
  ? new StreamableHTTPClientTransport(new URL(job.url))
  : new StdioClientTransport({ ...job.stdio, stderr: "ignore" });
// The SDK puts its own reader, and that of its probe, behind one that is there already.
transport.onmessage = (message) => heard.push(message);
const client = new Client(
  { name: "interop-typescript", version: "2.0.0" },
  {
    capabilities: job.asks ? ask.capabilities : {},
    versionNegotiation: { mode: job.era === "modern" ? { pin: "2026-07-28" } : job.era },
  },
);
for (const method of job.asks ? QUESTIONS : []) {
  client.setRequestHandler(method, (request) => ask.answer(request, []));
}
await client.connect(transport, options);
const modern = client.getProtocolEra() === "modern";

/** The answer to one request: {result} or {error}, or what the SDK says of it. */
async function answer(request) {
  try {
    return { result: await request };
  } catch (error) {
    if (error instanceof ProtocolError) {
      const { code, message, data } = error;
      return { error: { code, message, ...(data === undefined ? {} : { data }) } };
    }
    return { failed: String(error) };
  }
}

/**
 * All entries of a list, as they came; the SDK turns the pages.
 *
 * The SDK itself reads an answer by the schema of the era that it speaks, and drops what only the
 * other one has, such as `execution` of a tool: it would see less of an older server through a proxy
 * that speaks the newer era than it sees in the older one, whatever the proxy does.
 */
async function list(key, request) {
  const before = heard.length;
  const { result, ...other } = await answer(request.call(client, undefined, options));
  const pages = heard.slice(before).map((message) => message.result?.[key]).filter(Boolean);
  return result ? pages.flat() : other;
}

/** What the client was asked, by requests or by results that ask for input; as it came, as above. */
function asked() {
  const questions = heard.flatMap((message) =>
    message.method ? [message] : Object.values(message.result?.inputRequests ?? {}),
  );
  return questions
    .filter(({ method }) => QUESTIONS.includes(method))
    .map(({ method, params }) => ({ method, params: params ?? {} }));
}

function call(call, more = {}) {
  const meta = modern && job.level ? { _meta: { ...call._meta, [LOG_LEVEL_META_KEY]: job.level } } : {};
  return answer(client.callTool({ ...call, ...meta }, { ...options, ...more }));
}

const told = (method) => heard.filter((message) => message.method === method).map(({ params }) => params);
const all = async (requests, run) => {
  const answers = [];
  for (const request of requests ?? []) {
    answers.push(await run(request));
  }
  return answers;
};

const seen = {
  initialize: {
    protocolVersion: client.getNegotiatedProtocolVersion(),
    capabilities: client.getServerCapabilities(),
    serverInfo: client.getServerVersion(),
    instructions: client.getInstructions(),
  },
  tools: await list("tools", client.listTools),
  resources: await list("resources", client.listResources),
  templates: await list("resourceTemplates", client.listResourceTemplates),
  prompts: await list("prompts", client.listPrompts),
};
if (job.level && !modern) {
  seen.level = await answer(client.setLoggingLevel(job.level, options));
}
if (job.progress) {
  const result = await call(job.progress, { onprogress: () => {} });
  const notifications = told("notifications/progress").map(({ progressToken, ...rest }) => rest);
  seen.progress = { notifications, ...result };
}
seen.calls = await all(job.calls, (one) => call(one));
seen.reads = await all(job.reads, (uri) => answer(client.readResource({ uri }, options)));
seen.gets = await all(job.gets, (get) => answer(client.getPrompt(get, options)));
if (job.completes) {
  seen.completes = await all(job.completes, (one) => answer(client.complete(one, options)));
}
if (job.watch && !modern) {
  const { uri, toggle } = job.watch;
  seen.watch = [await answer(client.subscribeResource({ uri }, options))];
  if (toggle) {
    await call(toggle);
    await until(() => told("notifications/resources/updated").length > 0);
    await until(() => told("notifications/message").some(({ data }) => String(data).includes(uri)));
    await call(toggle);
    seen.watch.push(await answer(client.setLoggingLevel("error", options)));
  }
  seen.watch.push(await answer(client.unsubscribeResource({ uri }, options)));
}
if (job.listen && modern) {
  const changes = ["notifications/prompts/list_changed", "notifications/tools/list_changed"];
  const { result: subscription, ...other } = await answer(
    client.listen({ toolsListChanged: true, promptsListChanged: true }, options),
  );
  seen.listen = other;
  if (subscription) {
    await all(job.listen, (one) => call(one));
    await until(() => changes.every((change) => told(change).length > 0));
    seen.listen = {
      honored: subscription.honoredFilter,
      heard: changes.filter((change) => told(change).length > 0),
    };
    await subscription.close();
  }
}
seen.messages = told("notifications/message");
seen.updated = told("notifications/resources/updated");
seen.asked = asked();

await client.close();
fs.writeSync(1, JSON.stringify(seen));
process.exit(0);
