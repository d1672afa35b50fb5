//! Owns: what one backend offers, and what it said that it can do.
//! Never: other backends, or what a worker sees of all.
//! Next: `template`, in one of them.

use std::sync::Arc;
use std::time::Instant;

use super::{Changes, List, ListKind, Pages, bad_answer};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, walk};
use crate::mcp::cache::Fresh;
use crate::mcp::envelope;
use crate::mcp::revision::MODERN;
use crate::plan::{BackendId, BackendPlan};

/// What one backend offers; immutable, shared by all workers.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Whose it is.
    pub backend: BackendId,
    /// The revision that it answered to `initialize`.
    pub revision: String,
    /// Raw JSON, as it sent it.
    pub server_info: Box<str>,
    /// Raw JSON object, as it sent it.
    pub capabilities: Box<str>,
    /// What it tells models about itself.
    pub instructions: Option<String>,
    /// How long all this is good for, and for whom; `None` in the session era.
    pub fresh: Option<Fresh>,
    /// What the backend said that has changed, whether it looks different now or not.
    pub said: Changes,
    /// Its tools.
    pub tools: Arc<List>,
    /// Its resources.
    pub resources: Arc<List>,
    /// Its resource templates.
    pub templates: Arc<List>,
    /// Its prompts.
    pub prompts: Arc<List>,
    raw: Raw,
}

/// What a slice was made of: other rules make another one of it.
#[derive(Clone, Debug)]
struct Raw {
    initialize: Arc<[u8]>,
    /// By [`ListKind`].
    pages: [Arc<[Vec<u8>]>; 4],
}

impl Slice {
    /// Builds a slice from the raw result of `initialize` and those of all lists.
    ///
    /// # Errors
    /// [`Kind::BadAnswer`]: a result is not what MCP says it is.
    pub fn build(backend: &BackendPlan, initialize_result: &[u8], pages: &Pages) -> Result<Slice> {
        let bad =
            |what: &str| Error::new(Kind::BadAnswer).cause(format_args!("initialize: {what}"));
        let mut revision = None;
        let mut server_info = None;
        let mut capabilities = None;
        let mut instructions = None;
        for (key, value) in walk::members(initialize_result).map_err(bad_answer)? {
            let Some(key) = key.text(initialize_result) else { continue };
            let raw = value.of(initialize_result);
            // Checked by the walk, which would have refused anything else.
            let raw_text = || std::str::from_utf8(raw).unwrap_or("{}").into();
            match &*key {
                "protocolVersion" => revision = jsonrpc::unquote(raw),
                "serverInfo" => server_info = Some(raw_text()),
                "capabilities" if raw[0] == b'{' => capabilities = Some(raw_text()),
                "instructions" => instructions = jsonrpc::unquote(raw),
                _ => {}
            }
        }
        let list = |kind| List::build(backend, kind, pages.of(kind)).map(Arc::new);
        Ok(Slice {
            backend: backend.id,
            fresh: (revision.as_deref() == Some(MODERN))
                .then(|| Fresh::of(initialize_result, Instant::now())),
            said: Changes::default(),
            revision: revision.ok_or_else(|| bad("no protocolVersion"))?.into_owned(),
            server_info: server_info.unwrap_or_else(|| "{}".into()),
            capabilities: capabilities.ok_or_else(|| bad("no capabilities"))?,
            instructions: instructions
                .map(|text| text.into_owned())
                .filter(|text| !text.is_empty()),
            tools: list(ListKind::Tools)?,
            resources: list(ListKind::Resources)?,
            templates: list(ListKind::Templates)?,
            prompts: list(ListKind::Prompts)?,
            raw: Raw {
                initialize: initialize_result.into(),
                pages: ListKind::ALL.map(|kind| pages.of(kind).as_slice().into()),
            },
        })
    }

    /// The raw result of `initialize`.
    pub fn initialize_result(&self) -> &[u8] {
        &self.raw.initialize
    }

    /// The raw pages of one list.
    pub fn pages(&self, kind: ListKind) -> &[Vec<u8>] {
        &self.raw.pages[kind as usize]
    }

    /// The same as other rules of the backend shape it.
    ///
    /// # Errors
    /// As [`Slice::build`].
    pub fn shaped(&self, backend: &BackendPlan) -> Result<Slice> {
        let list = |kind| List::build(backend, kind, self.pages(kind)).map(Arc::new);
        Ok(Slice {
            backend: backend.id,
            said: Changes::default(),
            tools: list(ListKind::Tools)?,
            resources: list(ListKind::Resources)?,
            templates: list(ListKind::Templates)?,
            prompts: list(ListKind::Prompts)?,
            ..self.clone()
        })
    }

    /// The same backend with one list fetched anew.
    ///
    /// # Errors
    /// As [`List::build`].
    pub fn with_list(
        &self,
        backend: &BackendPlan,
        kind: ListKind,
        pages: &[Vec<u8>],
    ) -> Result<Slice> {
        let list = Arc::new(List::build(backend, kind, pages)?);
        let mut slice = self.clone();
        slice.raw.pages[kind as usize] = pages.into();
        match kind {
            ListKind::Tools => slice.tools = list,
            ListKind::Resources => slice.resources = list,
            ListKind::Templates => slice.templates = list,
            ListKind::Prompts => slice.prompts = list,
        }
        Ok(slice)
    }

    /// One of its lists.
    pub fn list(&self, kind: ListKind) -> &List {
        match kind {
            ListKind::Tools => &self.tools,
            ListKind::Resources => &self.resources,
            ListKind::Templates => &self.templates,
            ListKind::Prompts => &self.prompts,
        }
    }

    /// Whether it lists its tasks.
    pub fn can_list_tasks(&self) -> bool {
        self.has_tasks(&["list"])
    }

    /// Whether it has the tasks extension, which is of the request era alone.
    pub fn offers_tasks(&self) -> bool {
        let extensions = envelope::extensions(self.capabilities.as_bytes());
        self.revision == MODERN && extensions.is_some_and(envelope::has_tasks)
    }

    /// Whether its capability `tasks` has the object at that path.
    pub(super) fn has_tasks(&self, path: &[&str]) -> bool {
        let mut at = self.capabilities.as_bytes();
        for name in ["tasks"].iter().chain(path) {
            let Some(value) = walk::member(at, name) else { return false };
            at = value.of(at);
        }
        at.starts_with(b"{")
    }

    /// Whether clients would see the same in every list.
    pub fn has_the_lists_of(&self, other: &Slice) -> bool {
        ListKind::ALL.into_iter().all(|kind| self.list(kind).text == other.list(kind).text)
    }

    /// Whether it has the server capability of that name.
    pub fn can(&self, capability: &str) -> bool {
        walk::member(self.capabilities.as_bytes(), capability)
            .is_some_and(|value| value.of(self.capabilities.as_bytes())[0] == b'{')
    }

    /// Whether it sends `notifications/resources/updated`, in the way of its era, to who wants them.
    pub fn can_subscribe(&self) -> bool {
        let all = self.capabilities.as_bytes();
        walk::member(all, "resources").is_some_and(|value| subscribes(value.of(all)))
    }
}

/// What a backend promises beside lists and calls, as far as the proxy acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Can {
    /// `logging`
    pub logging: bool,
    /// `resources.subscribe`
    pub subscribe: bool,
}

impl Can {
    /// Read from the raw result of `initialize`.
    pub fn of(initialize_result: &[u8]) -> Can {
        let Some(span) = walk::member(initialize_result, "capabilities") else {
            return Can::default();
        };
        let all = span.of(initialize_result);
        let inside = |name: &str| walk::member(all, name).map(|value| value.of(all));
        Can {
            logging: inside("logging").is_some_and(|value| value[0] == b'{'),
            subscribe: inside("resources").is_some_and(subscribes),
        }
    }
}

/// Whether the `resources` capability has subscriptions.
fn subscribes(resources: &[u8]) -> bool {
    walk::member(resources, "subscribe").is_some_and(|value| value.of(resources) == b"true")
}
