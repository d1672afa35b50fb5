//! Owns: the methods of MCP that the proxy knows, and what it does with each.
//! Never: parameters or bodies.
//! Next: `header`.

/// A request or notification method, as a client sends it (session era).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `initialize`
    Initialize,
    /// `ping`
    Ping,
    /// `tools/list`
    ToolsList,
    /// `tools/call`
    ToolsCall,
    /// `resources/list`
    ResourcesList,
    /// `resources/templates/list`
    TemplatesList,
    /// `resources/read`
    ResourcesRead,
    /// `prompts/list`
    PromptsList,
    /// `prompts/get`
    PromptsGet,
    /// `notifications/initialized`
    Initialized,
    /// `notifications/cancelled`
    Cancelled,
    /// `notifications/progress`: of a request that a server sent.
    Progress,
    /// `notifications/roots/list_changed`
    RootsChanged,
    /// Anything else: -32601 for a request, accepted and dropped for a notification.
    Other,
}

impl Method {
    /// Reads the method's name; JSON escapes in it are not understood, as no client writes any.
    pub fn parse(name: &[u8]) -> Method {
        match name {
            b"tools/call" => Method::ToolsCall,
            b"tools/list" => Method::ToolsList,
            b"resources/read" => Method::ResourcesRead,
            b"resources/list" => Method::ResourcesList,
            b"resources/templates/list" => Method::TemplatesList,
            b"prompts/get" => Method::PromptsGet,
            b"prompts/list" => Method::PromptsList,
            b"ping" => Method::Ping,
            b"initialize" => Method::Initialize,
            b"notifications/initialized" => Method::Initialized,
            b"notifications/cancelled" => Method::Cancelled,
            b"notifications/progress" => Method::Progress,
            b"notifications/roots/list_changed" => Method::RootsChanged,
            _ => Method::Other,
        }
    }
}
