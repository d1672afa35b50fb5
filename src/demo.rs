//! Owns: the demo MCP server.
