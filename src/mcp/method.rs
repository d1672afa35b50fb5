//! Owns: the methods of MCP that the proxy knows, and what it does with each.
//! Never: parameters or bodies.
//! Next: `header`.

/// A request or notification method, as a client sends it.
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
    /// `completion/complete`
    Complete,
    /// `logging/setLevel`
    SetLevel,
    /// `resources/subscribe`
    Subscribe,
    /// `resources/unsubscribe`
    Unsubscribe,
    /// `tasks/get`
    TasksGet,
    /// `tasks/result`
    TasksResult,
    /// `tasks/cancel`
    TasksCancel,
    /// `tasks/list`
    TasksList,
    /// `tasks/update` (2026-07-28, the tasks extension)
    TasksUpdate,
    /// `server/discover` (2026-07-28)
    Discover,
    /// `subscriptions/listen` (2026-07-28)
    Listen,
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

/// A method without a name would end the exchange that counts it.
const _: () = assert!(Method::Other as usize + 1 == Method::NAMES.len());

impl Method {
    /// Their names, in the order of the variants; `other` stands for all the rest.
    pub const NAMES: &'static [&'static str] = &[
        "initialize",
        "ping",
        "tools/list",
        "tools/call",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "prompts/list",
        "prompts/get",
        "completion/complete",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/get",
        "tasks/result",
        "tasks/cancel",
        "tasks/list",
        "tasks/update",
        "server/discover",
        "subscriptions/listen",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
        "other",
    ];

    /// Its place in [`Method::NAMES`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name; `other` for what is not known.
    pub fn as_str(self) -> &'static str {
        Method::NAMES[self.index()]
    }

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
            b"completion/complete" => Method::Complete,
            b"logging/setLevel" => Method::SetLevel,
            b"resources/subscribe" => Method::Subscribe,
            b"resources/unsubscribe" => Method::Unsubscribe,
            b"tasks/get" => Method::TasksGet,
            b"tasks/result" => Method::TasksResult,
            b"tasks/cancel" => Method::TasksCancel,
            b"tasks/list" => Method::TasksList,
            b"tasks/update" => Method::TasksUpdate,
            b"server/discover" => Method::Discover,
            b"subscriptions/listen" => Method::Listen,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants_agree() {
        for (index, name) in Method::NAMES.iter().enumerate() {
            let method = Method::parse(name.as_bytes());
            assert_eq!((method.index(), method.as_str()), (index, *name));
        }
        assert_eq!(Method::Other.index() + 1, Method::NAMES.len());
    }
}
