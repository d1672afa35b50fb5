// An MCP server on stdio, on the TypeScript SDK, with what the published servers lack: lists of
// several pages, `_meta` and icons everywhere, vendor fields, `$defs`, and an error with data.

import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import {
  CallToolRequestSchema,
  GetPromptRequestSchema,
  ListPromptsRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListResourcesRequestSchema,
  ListToolsRequestSchema,
  McpError,
  ReadResourceRequestSchema,
} from "@modelcontextprotocol/sdk/types.js";

const meta = (of) => ({ "example.com/of": of, "example.com/nested": { list: [1, null, "\u00e9\ud83e\udd80"] } });
const icons = (of) => [{ src: `data:image/png;base64,${of}`, mimeType: "image/png", sizes: ["48x48"] }];

const tools = Array.from({ length: 7 }, (_, i) => ({
  name: `tool-${i}`,
  title: `Tool number ${i}`,
  description: `The "${i}"th tool,\nwith a \\ and a tab\t.`,
  inputSchema: {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    type: "object",
    $defs: { point: { $anchor: "point", type: "object", properties: { x: { type: "number" } } } },
    properties: { name: { type: "string" }, at: { $ref: "#/$defs/point" } },
    additionalProperties: false,
  },
  outputSchema: {
    type: "object",
    properties: { name: { type: "string" }, depth: { type: "object", properties: {} } },
    required: ["name"],
  },
  annotations: { title: `Annotated ${i}`, readOnlyHint: i % 2 === 0, idempotentHint: true },
  icons: icons(`tool${i}`),
  "x-vendor": { number: i, none: null },
  _meta: meta(`tool-${i}`),
}));
const resources = Array.from({ length: 5 }, (_, i) => ({
  uri: `paged://resource/${i}?a=1&b=%20`,
  name: `resource-${i}`,
  title: `Resource number ${i}`,
  mimeType: "text/plain",
  size: 1000 + i,
  annotations: { audience: ["user"], priority: 0.5, lastModified: "2025-01-12T15:00:58Z" },
  icons: icons(`resource${i}`),
  _meta: meta(`resource-${i}`),
}));
const resourceTemplates = Array.from({ length: 3 }, (_, i) => ({
  uriTemplate: `paged://template/${i}/{name}`,
  name: `template-${i}`,
  title: `Template number ${i}`,
  annotations: { audience: ["assistant"] },
  _meta: meta(`template-${i}`),
}));
const prompts = Array.from({ length: 3 }, (_, i) => ({
  name: `prompt-${i}`,
  title: `Prompt number ${i}`,
  arguments: [{ name: "who", title: "Who", description: "Whom to greet", required: true }],
  icons: icons(`prompt${i}`),
  _meta: meta(`prompt-${i}`),
}));

// Pages of two, named by an opaque cursor.
const page = (kind, entries, request) => {
  const start = Number(request.params?.cursor?.split(":")[1] ?? 0);
  const next = start + 2 < entries.length ? { nextCursor: `${kind}:${start + 2}` } : {};
  return { [kind]: entries.slice(start, start + 2), ...next };
};

const server = new Server(
  { name: "paged", title: "Pages", version: "1.2.3" },
  {
    capabilities: { tools: {}, resources: {}, prompts: {} },
    instructions: "Turn the page.",
  },
);
server.setRequestHandler(ListToolsRequestSchema, (r) => page("tools", tools, r));
server.setRequestHandler(ListResourcesRequestSchema, (r) => page("resources", resources, r));
server.setRequestHandler(ListResourceTemplatesRequestSchema, (r) => page("resourceTemplates", resourceTemplates, r));
server.setRequestHandler(ListPromptsRequestSchema, (r) => page("prompts", prompts, r));
server.setRequestHandler(CallToolRequestSchema, (request) => {
  const { name, arguments: given } = request.params;
  if (name === "tool-6") {
    throw new McpError(-32050, "No such luck", { because: ["a", { b: 1.5 }] });
  }
  return {
    content: [
      { type: "text", text: JSON.stringify(given), annotations: { priority: 1 }, _meta: meta("text") },
      { type: "resource_link", uri: resources[0].uri, name: "link", _meta: meta("link") },
      { type: "resource", resource: { uri: "paged://inline", text: "inline", _meta: meta("inline") } },
    ],
    structuredContent: { name: `${name}`, depth: { deeper: [[[{ deepest: true }]]] } },
    isError: false,
    _meta: { ...meta("result"), "example.com/sent": request.params._meta?.["example.com/sent"] ?? null },
  };
});
server.setRequestHandler(ReadResourceRequestSchema, (request) => ({
  contents: [{ uri: request.params.uri, mimeType: "text/plain", text: `\u0000 ${request.params.uri}`, _meta: meta("contents") }],
  _meta: meta("read"),
}));
server.setRequestHandler(GetPromptRequestSchema, (request) => ({
  description: request.params.name,
  messages: [{ role: "user", content: { type: "text", text: `Hello ${request.params.arguments?.who}`, _meta: meta("message") } }],
  _meta: meta("get"),
}));
await server.connect(new StdioServerTransport());
