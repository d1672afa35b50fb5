//! Owns: what all backends offer together: merged lists, owners of names and URIs, capabilities,
//! instructions.
//! Never: fetching (`backend`), prefixes of names that are called (`name`).
//! Next: `template`.
//!
//! A [`Slice`] is what one backend offers, immutable, built once where it was fetched and shared by
//! all workers. A [`Catalog`] is one worker's view of all slices: every list is rendered when a
//! slice changes, and is then only copied.
//!
//! Entries keep every byte that their backend wrote, but for the prefix before their name. They are
//! found by byte ranges: a tree of values (simd-json's or serde_json's) would have to be written out
//! again, and would lose number text, escapes and the order of keys.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::cache::Fresh;
use super::envelope::{self, CARRIED_MODERN, TASKS};
use super::hints::Hints;
use super::mirrored::{self, Mirrored};
use super::revision::MODERN;
use super::template::Template;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Span, walk};
use crate::limits::LIST_ENTRIES_MAX;
use crate::plan::{BackendId, BackendPlan, Plan, slot};

/// The four lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// `tools/list`
    Tools,
    /// `resources/list`
    Resources,
    /// `resources/templates/list`
    Templates,
    /// `prompts/list`
    Prompts,
}

impl ListKind {
    /// All four.
    pub const ALL: [ListKind; 4] =
        [ListKind::Tools, ListKind::Resources, ListKind::Templates, ListKind::Prompts];

    /// The method that asks for it.
    pub const fn method(self) -> &'static str {
        match self {
            ListKind::Tools => "tools/list",
            ListKind::Resources => "resources/list",
            ListKind::Templates => "resources/templates/list",
            ListKind::Prompts => "prompts/list",
        }
    }

    /// The member of the result that holds it.
    pub const fn member(self) -> &'static str {
        match self {
            ListKind::Tools => "tools",
            ListKind::Resources => "resources",
            ListKind::Templates => "resourceTemplates",
            ListKind::Prompts => "prompts",
        }
    }

    /// The member of an entry that tells it from the others.
    pub const fn key(self) -> &'static str {
        match self {
            ListKind::Tools | ListKind::Prompts => "name",
            ListKind::Resources => "uri",
            ListKind::Templates => "uriTemplate",
        }
    }

    /// The server capability that promises it.
    pub const fn capability(self) -> &'static str {
        match self {
            ListKind::Tools => "tools",
            ListKind::Resources | ListKind::Templates => "resources",
            ListKind::Prompts => "prompts",
        }
    }

    /// Whether the prefix of a backend stands before its keys. URIs are not renamed: they stand in
    /// contents and links too.
    const fn prefixed(self) -> bool {
        matches!(self, ListKind::Tools | ListKind::Prompts)
    }
}

/// An entry of a backend's list on its way to the clients, as its rules shape it.
pub struct Draft<'e> {
    /// Which list it stands in.
    pub what: ListKind,
    /// The backend's own name, the URI, or the text of the template.
    pub own: &'e str,
    /// The name that clients see, before the prefix.
    pub shown: Cow<'e, str>,
    /// What a tool says about itself.
    pub hints: Hints,
    /// The entry as JSON, with its own name.
    pub entry: Cow<'e, [u8]>,
}

/// Raw results of list requests, all pages of each in their order.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// Of `tools/list`.
    pub tools: Vec<Vec<u8>>,
    /// Of `resources/list`.
    pub resources: Vec<Vec<u8>>,
    /// Of `resources/templates/list`.
    pub templates: Vec<Vec<u8>>,
    /// Of `prompts/list`.
    pub prompts: Vec<Vec<u8>>,
}

impl Pages {
    /// The pages of one list.
    pub fn of(&self, kind: ListKind) -> &Vec<Vec<u8>> {
        match kind {
            ListKind::Tools => &self.tools,
            ListKind::Resources => &self.resources,
            ListKind::Templates => &self.templates,
            ListKind::Prompts => &self.prompts,
        }
    }

    /// The pages of one list, to add to.
    pub fn of_mut(&mut self, kind: ListKind) -> &mut Vec<Vec<u8>> {
        match kind {
            ListKind::Tools => &mut self.tools,
            ListKind::Resources => &mut self.resources,
            ListKind::Templates => &mut self.templates,
            ListKind::Prompts => &mut self.prompts,
        }
    }
}

/// The raw `nextCursor` of a list result, a JSON string; `None` on the last page.
///
/// # Errors
/// The result is no JSON object, or its cursor is no string.
pub fn next_cursor(result: &[u8]) -> Result<Option<Span>> {
    let mut members = walk::members(result).map_err(bad_answer)?;
    let cursor = members.find(|(key, _)| walk::key_is(key.of(result), "nextCursor"));
    match cursor.map(|(_, value)| (value, value.of(result)[0])) {
        None | Some((_, b'n')) => Ok(None),
        Some((cursor, b'"')) => Ok(Some(cursor)),
        Some(_) => Err(Error::new(Kind::BadAnswer).cause("nextCursor is no string")),
    }
}

/// One list of one backend.
#[derive(Debug, Default)]
pub struct List {
    /// All entries with commas between them, names prefixed.
    text: Box<[u8]>,
    entries: Vec<Entry>,
    index: HashMap<Arc<str>, u32, ahash::RandomState>,
    /// Entries that could not be taken over.
    skipped: usize,
    /// Templates that are hidden: what they name still belongs to this backend.
    hidden: Vec<Template>,
    /// How long it is good for, and for whom; `None` of a list that was not read.
    fresh: Option<Fresh>,
    /// By the backend's own name: the arguments of tools that are repeated in fields of the head.
    mirrored: HashMap<Box<str>, Vec<Mirrored>, ahash::RandomState>,
}

#[derive(Debug)]
struct Entry {
    /// The name that clients see, before the prefix; the URI, or the text of the template.
    key: Arc<str>,
    /// The backend's own name, if it is another.
    own: Option<Arc<str>>,
    /// What a tool says about itself.
    hints: Hints,
    /// In the list's text.
    span: Span,
    /// Of a template that is understood.
    template: Option<Template>,
}

impl List {
    /// Builds a list from the raw results of its pages.
    ///
    /// Entries without a usable name or URI, and those whose name or URI an earlier one has, are
    /// left out and counted: nobody could call them, and they must not cost the others.
    ///
    /// # Errors
    /// A page is no JSON object, or its list is no array. A list that is missing or null is empty
    /// (Go writes null for one).
    pub fn build(backend: &BackendPlan, kind: ListKind, pages: &[Vec<u8>]) -> Result<List> {
        let mut prefix = Vec::new();
        if kind.prefixed() {
            jsonrpc::quote_into(&backend.prefix, &mut prefix);
        }
        let mut list = List::default();
        let now = Instant::now();
        list.fresh = Fresh::all(pages.iter().map(|page| Fresh::of(page, now)));
        let mut text = Vec::with_capacity(pages.iter().map(Vec::len).sum());
        for page in pages {
            let Some(array) = walk::members(page)
                .map_err(bad_answer)?
                .find(|(key, _)| walk::key_is(key.of(page), kind.member()))
                .map(|(_, value)| value.of(page))
            else {
                continue;
            };
            if array == b"null" {
                continue;
            }
            let Some(elements) = walk::elements_of_checked(array) else {
                return Err(Error::new(Kind::BadAnswer).cause("a list that is no array"));
            };
            for element in elements {
                let fresh = list.entries.len() < LIST_ENTRIES_MAX
                    && list.add(backend, kind, &prefix, element.of(array), &mut text);
                list.skipped += usize::from(!fresh);
            }
        }
        if list.skipped > 0 {
            tracing::warn!(
                backend = %backend.name,
                list = kind.method(),
                entries = list.skipped,
                "entries left out: no name, one that an earlier entry has, or too many",
            );
        }
        list.text = text.into();
        Ok(list)
    }

    /// Adds one entry; false if it cannot be taken over.
    fn add(
        &mut self,
        backend: &BackendPlan,
        kind: ListKind,
        prefix: &[u8],
        entry: &[u8],
        text: &mut Vec<u8>,
    ) -> bool {
        let Some(members) = walk::members_of_checked(entry) else { return false };
        let mut keys = members.filter(|(key, _)| walk::key_is(key.of(entry), kind.key()));
        // Of two names each reader may take another one.
        let (Some((_, raw)), None) = (keys.next(), keys.next()) else { return false };
        let Some(key) = raw.text(entry).filter(|key| !key.is_empty()) else { return false };
        let hints = if kind == ListKind::Tools { Hints::of(entry) } else { Hints::default() };
        if kind == ListKind::Tools {
            let mirrored = mirrored::of_tool(entry);
            if !mirrored.is_empty() {
                self.mirrored.insert((&*key).into(), mirrored);
            }
        }
        if backend.chain.spares_lists() {
            return self.push(kind, prefix, &key, None, hints, entry, raw, text);
        }
        let (own, shown) = (&*key, Cow::Borrowed(&*key));
        let mut draft = Draft { what: kind, own, shown, hints, entry: Cow::Borrowed(entry) };
        if !backend.chain.entry(&mut draft) {
            if kind == ListKind::Templates {
                self.hidden.extend(Template::parse(own));
            }
            // Hidden is not skipped.
            return true;
        }
        let mut text_of_entry = draft.entry;
        if draft.shown != own {
            // What the rules made of the entry left its name where it was, or moved it.
            let Some((_, raw)) = name_of(kind, &text_of_entry) else { return false };
            let mut quoted = Vec::new();
            jsonrpc::quote(&draft.shown, &mut quoted);
            text_of_entry = Cow::Owned(jsonrpc::splice(&text_of_entry, &[(raw, &quoted)]));
        }
        let Some((_, raw)) = name_of(kind, &text_of_entry) else { return false };
        let other = (draft.shown != own).then_some(own);
        self.push(kind, prefix, &draft.shown, other, hints, &text_of_entry, raw, text)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry")]
    fn push(
        &mut self,
        kind: ListKind,
        prefix: &[u8],
        key: &str,
        own: Option<&str>,
        hints: Hints,
        entry: &[u8],
        raw: Span,
        text: &mut Vec<u8>,
    ) -> bool {
        // Ranges are 32 bits wide; nothing near that is kept, for the pages are bounded.
        if text.len() + prefix.len() + entry.len() + 1 > u32::MAX as usize {
            return false;
        }
        let key: Arc<str> = key.into();
        match self.index.entry(key.clone()) {
            Slot::Occupied(_) => return false,
            Slot::Vacant(slot) => slot.insert(self.entries.len() as u32),
        };
        if !text.is_empty() {
            text.push(b',');
        }
        let start = text.len();
        let inside = raw.start as usize + 1;
        text.extend_from_slice(&entry[..inside]);
        text.extend_from_slice(prefix);
        text.extend_from_slice(&entry[inside..]);
        let template = match kind {
            ListKind::Templates => Template::parse(&key),
            _ => None,
        };
        let own = own.map(Arc::from);
        let span = Span::new(start, text.len());
        self.entries.push(Entry { key, own, hints, span, template });
        true
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that could not be taken over.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Own name or URI of each entry, and its JSON as clients see it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|entry| (&*entry.key, entry.span.of(&self.text)))
    }

    /// The entry with that own name, URI or template text, as JSON.
    pub fn find(&self, key: &str) -> Option<&[u8]> {
        let at = *self.index.get(key)?;
        Some(self.entries[at as usize].span.of(&self.text))
    }

    /// Own name and hints of the entry that clients see under that name.
    pub fn behind(&self, shown: &str) -> Option<(&str, Hints)> {
        let at = *self.index.get(shown)?;
        let entry = &self.entries[at as usize];
        Some((entry.own.as_deref().unwrap_or(&entry.key), entry.hints))
    }

    /// How long it is good for, and for whom; `None` of a list that was not read.
    pub fn fresh(&self) -> Option<Fresh> {
        self.fresh
    }

    /// The arguments of a tool that are repeated in fields, by the backend's own names.
    pub fn mirrored(&self, own: &str) -> &[Mirrored] {
        self.mirrored.get(own).map_or(&[], Vec::as_slice)
    }

    /// Whether a template of it can expand to `uri`.
    fn expands_to(&self, uri: &str) -> bool {
        let shown = self.entries.iter().filter_map(|entry| entry.template.as_ref());
        shown.chain(&self.hidden).any(|template| template.matches(uri))
    }
}

/// The key of an entry's name and the name, both raw.
fn name_of(kind: ListKind, entry: &[u8]) -> Option<(Span, Span)> {
    let mut members = walk::members_of_checked(entry)?;
    members.find(|(key, _)| walk::key_is(key.of(entry), kind.key()))
}

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
    fn has_tasks(&self, path: &[&str]) -> bool {
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

/// Which lists look different to clients now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// `notifications/tools/list_changed` is due.
    pub tools: bool,
    /// `notifications/resources/list_changed` is due: resources or templates.
    pub resources: bool,
    /// `notifications/prompts/list_changed` is due.
    pub prompts: bool,
}

/// A name or URI that two backends have. The first in the file owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The list that it stands in.
    pub kind: ListKind,
    /// The name or URI.
    pub key: Arc<str>,
    /// The backend that has it.
    pub owner: Arc<str>,
    /// The backend whose entry is hidden.
    pub hidden: Arc<str>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict { kind, key, owner, hidden } = self;
        write!(f, "{}: {key:?} of backend {hidden} is hidden by backend {owner}", kind.method())
    }
}

/// Conflicts that are kept by name, for each list; the rest is counted.
pub const CONFLICTS_KEPT_MAX: usize = 100;

/// All slices as one worker sees them.
#[derive(Debug)]
pub struct Catalog {
    /// In the order of the file.
    places: Vec<Place>,
    /// By the places of backends in tables: where in `places`, plus 1; 0 = nowhere.
    at: Rc<[u32]>,
    lists: [Merged; 4],
    capabilities: String,
    /// Reads whose URI the templates of more than one backend match.
    contested: Cell<u64>,
}

#[derive(Clone, Debug)]
struct Place {
    id: BackendId,
    name: Arc<str>,
    prefix: String,
    /// `None` = nobody knows what it offers (now).
    slice: Option<Arc<Slice>>,
    /// What it offers is in no list; it stands in `unlisted`, and never in `slice`.
    is_unlisted: bool,
    /// What it offers is each client's own affair (`forward_auth`), and never kept here.
    is_private: bool,
    unlisted: Option<Arc<Slice>>,
}

#[derive(Debug)]
struct Merged {
    /// The ready result.
    text: Rc<[u8]>,
    conflicts: Vec<Conflict>,
    /// Conflicts beyond those that are kept.
    more_conflicts: usize,
    /// How many of the kept ones came with the last change; they stand last.
    new_conflicts: usize,
}

impl Catalog {
    /// A catalogue of backends of which nothing is known yet.
    pub fn new(plan: &Plan) -> Catalog {
        let place = |backend: &Arc<BackendPlan>| Place {
            id: backend.id,
            name: backend.name.clone(),
            // Of an unlisted one the prefix is no claim to any name.
            prefix: if backend.unlisted { String::new() } else { backend.prefix.clone() },
            slice: None,
            is_unlisted: backend.unlisted,
            is_private: backend.forwards(),
            unlisted: None,
        };
        let places: Vec<Place> = plan.backends.iter().map(place).collect();
        let mut at = vec![0; plan.backends.room()];
        for (index, place) in places.iter().enumerate() {
            at[slot(place.id)] = index as u32 + 1;
        }
        let lists = ListKind::ALL.map(|kind| Merged::render(kind, &places));
        let (capabilities, contested) = (String::new(), Cell::new(0));
        let mut catalog = Catalog { places, at: at.into(), lists, capabilities, contested };
        catalog.promise();
        catalog
    }

    /// A catalogue of a plan some of whose backends are known already.
    pub fn with(plan: &Plan, known: impl Iterator<Item = (BackendId, Arc<Slice>)>) -> Catalog {
        let mut catalog = Catalog::new(plan);
        for (backend, slice) in known {
            if let Some(place) = catalog.at(backend).map(|at| &mut catalog.places[at])
                && !place.is_private
            {
                let kept = if place.is_unlisted { &mut place.unlisted } else { &mut place.slice };
                *kept = Some(slice);
            }
        }
        catalog.lists = ListKind::ALL.map(|kind| Merged::render(kind, &catalog.places));
        catalog.promise();
        catalog
    }

    /// What clients of another catalogue see otherwise here.
    pub fn changes_from(&self, other: &Catalog) -> Changes {
        let differs = |kind| self.merged(kind).text != other.merged(kind).text;
        Changes {
            tools: differs(ListKind::Tools),
            resources: differs(ListKind::Resources) || differs(ListKind::Templates),
            prompts: differs(ListKind::Prompts),
        }
    }

    /// Where a backend stands among the places.
    fn at(&self, backend: BackendId) -> Option<usize> {
        let at = (*self.at.get(slot(backend))? as usize).checked_sub(1)?;
        (self.places[at].id == backend).then_some(at)
    }

    /// Takes over what a backend offers now, or that nobody knows it; tells which merged lists
    /// differ from before, compared byte by byte, or are said to. Of a backend that the plan has not
    /// nothing is taken over.
    pub fn set(&mut self, backend: BackendId, slice: Option<Arc<Slice>>) -> Changes {
        let Some(backend) = self.at(backend) else { return Changes::default() };
        if self.places[backend].is_private {
            return Changes::default();
        }
        if self.places[backend].is_unlisted {
            self.places[backend].unlisted = slice;
            return Changes::default();
        }
        let before = std::mem::replace(&mut self.places[backend].slice, slice);
        let after = &self.places[backend].slice;
        let mut changed = [false; 4];
        for (at, kind) in ListKind::ALL.into_iter().enumerate() {
            let list = &mut self.lists[at];
            list.new_conflicts = 0;
            if entries(&before, kind) == entries(after, kind) {
                continue;
            }
            let mut fresh = Merged::render(kind, &self.places);
            // Known conflicts first, so that the new ones stand last.
            fresh.conflicts.sort_by_key(|conflict| !list.conflicts.contains(conflict));
            let known = |conflict: &&Conflict| list.conflicts.contains(conflict);
            fresh.new_conflicts =
                fresh.conflicts.len() - fresh.conflicts.iter().filter(known).count();
            changed[at] = fresh.text != list.text;
            *list = fresh;
        }
        self.promise();
        let [tools, resources, templates, prompts] = changed;
        let said = self.places[backend].slice.as_ref().map(|slice| slice.said).unwrap_or_default();
        Changes {
            tools: tools || said.tools,
            resources: resources || templates || said.resources,
            prompts: prompts || said.prompts,
        }
    }

    /// The same catalogue for somebody to whom some backends offer something else.
    pub fn seen_with(&self, others: &[(BackendId, Arc<Slice>)]) -> Catalog {
        let mut places = self.places.clone();
        for (backend, slice) in others {
            let Some(place) = self.at(*backend).map(|at| &mut places[at]) else { continue };
            let kept = if place.is_unlisted { &mut place.unlisted } else { &mut place.slice };
            *kept = Some(slice.clone());
        }
        let lists = ListKind::ALL.map(|kind| Merged::render(kind, &places));
        let (capabilities, at) = (self.capabilities.clone(), self.at.clone());
        Catalog { places, at, lists, capabilities, contested: Cell::new(0) }
    }

    /// What a backend offers, as far as it is known.
    pub fn slice(&self, backend: BackendId) -> Option<&Arc<Slice>> {
        let place = &self.places[self.at(backend)?];
        place.slice.as_ref().or(place.unlisted.as_ref())
    }

    /// The ready result of a list request: one page, in the order of the file, then of the backend.
    pub fn list(&self, kind: ListKind) -> Rc<[u8]> {
        self.merged(kind).text.clone()
    }

    /// How long a merged list is good for, and for whom; `None`: it is stale, as one part is not
    /// known or says nothing.
    pub fn fresh(&self, kind: ListKind) -> Option<Fresh> {
        if self.unknown() > 0 {
            return None;
        }
        let slices = self.listed().filter_map(|place| place.slice.as_ref());
        Fresh::all(slices.filter_map(|slice| slice.list(kind).fresh()))
    }

    /// The same of the answer to `server/discover`.
    pub fn discover_fresh(&self) -> Option<Fresh> {
        let mut parts = Vec::new();
        for place in self.listed() {
            parts.push(place.slice.as_ref()?.fresh?);
        }
        Fresh::all(parts.into_iter())
    }

    /// Whether a backend has such a list, or may turn out to.
    pub fn offers(&self, kind: ListKind) -> bool {
        self.listed().any(|place| match &place.slice {
            None => true,
            Some(slice) => slice.can(kind.capability()) || !slice.list(kind).is_empty(),
        })
    }

    /// The `capabilities` of `server/discover`, a JSON object: what a caller of the request era gets
    /// of what the backends can do, through whichever era.
    pub fn modern_capabilities(&self) -> String {
        let slices = || self.listed().filter_map(|place| place.slice.as_ref());
        let offered = |kind: ListKind| self.offers(kind);
        let mut parts = Vec::new();
        if offered(ListKind::Tools) {
            parts.push(r#""tools":{"listChanged":true}"#.to_owned());
        }
        if offered(ListKind::Resources) || offered(ListKind::Templates) {
            let subscribe = match slices().any(|slice| slice.can_subscribe()) {
                true => r#","subscribe":true"#,
                false => "",
            };
            parts.push(format!(r#""resources":{{"listChanged":true{subscribe}}}"#));
        }
        if offered(ListKind::Prompts) {
            parts.push(r#""prompts":{"listChanged":true}"#.to_owned());
        }
        for plain in ["completions", "logging"] {
            if slices().any(|slice| slice.can(plain)) {
                parts.push(format!(r#""{plain}":{{}}"#));
            }
        }
        let mut extensions = String::new();
        for extension in CARRIED_MODERN {
            let settings = slices().find_map(|slice| {
                let all = envelope::extensions(slice.capabilities.as_bytes())?;
                if extension == TASKS && !slice.offers_tasks() {
                    return None;
                }
                let settings = walk::member(all, extension)?.of(all);
                std::str::from_utf8(settings).ok()
            });
            if let Some(settings) = settings {
                let comma = if extensions.is_empty() { "" } else { "," };
                extensions.push_str(&format!(r#"{comma}"{extension}":{settings}"#));
            }
        }
        if !extensions.is_empty() {
            parts.push(format!(r#""extensions":{{{extensions}}}"#));
        }
        format!("{{{}}}", parts.join(","))
    }

    fn listed(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| !place.is_unlisted)
    }

    fn merged(&self, kind: ListKind) -> &Merged {
        &self.lists[kind as usize]
    }

    /// The backend that has a tool or prompt of that name and no prefix: the first in the file.
    ///
    /// Ask only for names that no prefix begins: those lead to the backend that has it, whatever
    /// others may call theirs.
    pub fn owner_of_name(&self, kind: ListKind, name: &str) -> Option<BackendId> {
        debug_assert!(kind.prefixed());
        let mut places = self.places.iter();
        let owner = places.find(|place| {
            let slice = place.slice.as_ref().filter(|_| place.prefix.is_empty());
            slice.is_some_and(|slice| slice.list(kind).find(name).is_some())
        });
        owner.map(|place| place.id)
    }

    /// The backend that a resource belongs to: the first in the file that lists it, else the first
    /// one a template of which can expand to it.
    pub fn owner_of_uri(&self, uri: &str) -> Option<BackendId> {
        let known = || self.places.iter().filter_map(|place| Some((place, place.slice.as_ref()?)));
        let mut listed = known().filter(|(_, slice)| slice.resources.find(uri).is_some());
        if let Some((owner, _)) = listed.next() {
            return Some(owner.id);
        }
        let mut matching = known().filter(|(_, slice)| slice.templates.expands_to(uri));
        let (owner, _) = matching.next()?;
        if let Some((rival, _)) = matching.next() {
            self.contested.set(self.contested.get() + 1);
            tracing::debug!(
                owner = %owner.name,
                rival = %rival.name,
                "templates of two backends match a resource",
            );
        }
        Some(owner.id)
    }

    /// The first backend in the file that lists a template of exactly that text.
    pub fn owner_of_template(&self, text: &str) -> Option<BackendId> {
        let mut places = self.places.iter();
        let owner = places.find(|place| {
            place.slice.as_ref().is_some_and(|slice| slice.templates.find(text).is_some())
        });
        owner.map(|place| place.id)
    }

    /// Whether some backend has the server capability of that name, or may have it: see
    /// [`Catalog::capabilities`].
    pub fn can(&self, capability: &str) -> bool {
        self.listed().any(|place| place.slice.as_ref().is_none_or(|slice| slice.can(capability)))
    }

    /// Names and URIs that two backends have; at most [`CONFLICTS_KEPT_MAX`] of each list.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.lists.iter().flat_map(|list| &list.conflicts)
    }

    /// Those of them that came with the last [`Catalog::set`]: to be logged, by one worker.
    pub fn new_conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.lists.iter().flat_map(|list| {
            &list.conflicts[list.conflicts.len().saturating_sub(list.new_conflicts)..]
        })
    }

    /// Number of all of them.
    pub fn conflict_count(&self) -> usize {
        self.lists.iter().map(|list| list.conflicts.len() + list.more_conflicts).sum()
    }

    /// Reads so far whose URI the templates of more than one backend matched.
    pub fn contested_reads(&self) -> u64 {
        self.contested.get()
    }

    /// Backends of which it is not known what they offer.
    pub fn unknown(&self) -> usize {
        self.listed().filter(|place| place.slice.is_none()).count()
    }

    /// The `capabilities` of `initialize`, a JSON object.
    ///
    /// A session cannot be told of a capability later, so as long as one backend is unknown,
    /// everything that it might bring is promised.
    pub fn capabilities(&self) -> &str {
        &self.capabilities
    }

    /// Renders [`Catalog::capabilities`].
    fn promise(&mut self) {
        let offered = |kind: ListKind| self.offers(kind);
        let any = |wanted: &dyn Fn(&Slice) -> bool| {
            self.listed().any(|place| place.slice.as_ref().is_none_or(|slice| wanted(slice)))
        };
        let mut out = String::from("{");
        for (capability, kinds) in [
            ("tools", &[ListKind::Tools][..]),
            ("resources", &[ListKind::Resources, ListKind::Templates]),
            ("prompts", &[ListKind::Prompts]),
        ] {
            if kinds.iter().any(|&kind| offered(kind)) {
                let comma = if out.len() > 1 { "," } else { "" };
                let subscribe = match capability {
                    "resources" if any(&Slice::can_subscribe) => r#","subscribe":true"#,
                    _ => "",
                };
                let text = format!(r#"{comma}"{capability}":{{"listChanged":true{subscribe}}}"#);
                out.push_str(&text);
            }
        }
        for capability in ["logging", "completions"] {
            if any(&|slice| slice.can(capability)) {
                let comma = if out.len() > 1 { "," } else { "" };
                out.push_str(&format!(r#"{comma}"{capability}":{{}}"#));
            }
        }
        let mut tasks = String::new();
        for (path, text) in [
            (&["list"][..], r#""list":{}"#),
            (&["cancel"], r#""cancel":{}"#),
            (&["requests", "tools", "call"], r#""requests":{"tools":{"call":{}}}"#),
        ] {
            if any(&|slice| slice.has_tasks(path)) {
                let comma = if tasks.is_empty() { "" } else { "," };
                tasks.push_str(&format!("{comma}{text}"));
            }
        }
        if !tasks.is_empty() {
            let comma = if out.len() > 1 { "," } else { "" };
            out.push_str(&format!(r#"{comma}"tasks":{{{tasks}}}"#));
        }
        out.push('}');
        self.capabilities = out;
    }

    /// The instructions of all backends, each under the backend's name; those of the only backend
    /// are its own words.
    pub fn instructions(&self) -> Option<String> {
        self.instructions_of(|_| true)
    }

    /// As [`Catalog::instructions`], of those backends alone that have something of which `shows`
    /// says so, asked with the names and URIs that clients see.
    pub fn instructions_where(&self, shows: impl Fn(ListKind, &str) -> bool) -> Option<String> {
        self.instructions_of(|place| {
            let Some(slice) = &place.slice else { return false };
            ListKind::ALL.into_iter().any(|kind| {
                let prefix = if kind.prefixed() { place.prefix.as_str() } else { "" };
                slice.list(kind).iter().any(|(key, _)| shows(kind, &format!("{prefix}{key}")))
            })
        })
    }

    fn instructions_of(&self, shown: impl Fn(&Place) -> bool) -> Option<String> {
        let mut out = String::new();
        for place in self.places.iter().filter(|place| shown(place)) {
            let slice = place.slice.as_ref();
            let Some(text) = slice.and_then(|slice| slice.instructions.as_deref()) else {
                continue;
            };
            if self.listed().count() > 1 {
                if !out.is_empty() {
                    out.push_str("\n\n");
                }
                out.push_str(&format!("## {}\n\n", place.name));
            }
            out.push_str(text);
        }
        (!out.is_empty()).then_some(out)
    }
}

impl Merged {
    fn render(kind: ListKind, places: &[Place]) -> Merged {
        let slices =
            || places.iter().filter_map(|place| Some((place, place.slice.as_ref()?.list(kind))));
        let bytes: usize = slices().map(|(_, list)| list.text.len() + 1).sum();
        let mut text = Vec::with_capacity(bytes + 32);
        text.push(b'{');
        jsonrpc::quote(kind.member(), &mut text);
        text.extend_from_slice(b":[");
        let empty = text.len();
        let mut conflicts = Vec::new();
        let mut more_conflicts = 0;
        let mut owners: HashMap<&str, &Place, ahash::RandomState> = HashMap::default();
        for (place, list) in slices() {
            // Prefixed names are apart by their prefixes, of which none begins another.
            let apart = kind.prefixed() && !place.prefix.is_empty();
            for entry in &list.entries {
                let owner = if apart {
                    None
                } else if let Some(other) = prefix_owner(kind, places, &entry.key) {
                    Some(other)
                } else {
                    match owners.entry(&entry.key) {
                        Slot::Occupied(owner) => Some(*owner.get()),
                        Slot::Vacant(slot) => {
                            slot.insert(place);
                            None
                        }
                    }
                };
                match owner {
                    None => {
                        if text.len() > empty {
                            text.push(b',');
                        }
                        text.extend_from_slice(entry.span.of(&list.text));
                    }
                    Some(_) if conflicts.len() == CONFLICTS_KEPT_MAX => more_conflicts += 1,
                    Some(owner) => conflicts.push(Conflict {
                        kind,
                        key: entry.key.clone(),
                        owner: owner.name.clone(),
                        hidden: place.name.clone(),
                    }),
                }
            }
        }
        text.extend_from_slice(b"]}");
        Merged { text: text.into(), conflicts, more_conflicts, new_conflicts: 0 }
    }
}

/// The backend whose prefix begins a name that another one wants to expose as its own.
///
/// A configured prefix is the operator's word, so the name is that backend's whether it has such a
/// tool (or is up) or not: nobody can take over another backend's tools by naming its own so.
fn prefix_owner<'p>(kind: ListKind, places: &'p [Place], name: &str) -> Option<&'p Place> {
    if !kind.prefixed() {
        return None;
    }
    places.iter().find(|place| {
        let prefix = place.prefix.as_str();
        !prefix.is_empty() && name.len() > prefix.len() && name.starts_with(prefix)
    })
}

/// The entries of one list as they stand in the merged one.
fn entries(slice: &Option<Arc<Slice>>, kind: ListKind) -> &[u8] {
    slice.as_ref().map_or(&[], |slice| &slice.list(kind).text)
}

fn bad_answer(fault: jsonrpc::ScanFault) -> Error {
    Error::new(Kind::BadAnswer).cause(fault)
}

#[cfg(test)]
pub(crate) mod testing {
    //! A backend for tests.

    use std::time::Duration;

    use crate::plan::{BackendId, BackendPlan, Isolation, RestartPlan, StdioPlan, TransportPlan};

    pub(crate) fn backend(id: BackendId, name: &str, prefix: &str) -> BackendPlan {
        BackendPlan {
            id,
            name: name.into(),
            prefix: prefix.into(),
            transport: TransportPlan::Stdio(StdioPlan {
                command: "true".into(),
                args: Vec::new(),
                env: Vec::new(),
                cwd: None,
                children_max: 1,
                idle_stop: Duration::from_secs(1),
            }),
            protocol: crate::plan::Protocol::Auto,
            isolation: Isolation::Shared,
            startup_timeout: Duration::from_secs(1),
            restart: RestartPlan {
                initial: Duration::from_secs(1),
                max: Duration::from_secs(1),
                give_up_after: None,
            },
            call_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            chain: Default::default(),
            around: Default::default(),
            unlisted: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::{HostRule, ListenPlan, OriginRule};

    fn backend(id: BackendId, name: &str, prefix: &str) -> Arc<BackendPlan> {
        Arc::new(testing::backend(id, name, prefix))
    }

    /// Backends by name and prefix.
    fn plan(backends: &[(&str, &str)]) -> Plan {
        Plan {
            name: "proxy".into(),
            version: "1".into(),
            instructions: None,
            separator: "__".into(),
            workers: 1,
            sessions_max: 1,
            session_idle: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(1),
            body_bytes_max: 1,
            rate: None,
            access: None,
            listen: ListenPlan {
                addr: "127.0.0.1:0".parse().unwrap(),
                origins: OriginRule::Loopback,
                hosts: HostRule::Any,
                public_url: None,
                tls: None,
            },
            watch: Default::default(),
            backends: backends
                .iter()
                .enumerate()
                .map(|(id, (name, prefix))| backend(id, name, prefix))
                .collect(),
        }
    }

    const INITIALIZE: &str = r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}"#;

    fn list_of(member: &str, entries: &str) -> Vec<Vec<u8>> {
        vec![format!(r#"{{"{member}":[{entries}]}}"#).into_bytes()]
    }

    fn tools(plan: &Plan, id: BackendId, entries: &str) -> Option<Arc<Slice>> {
        let pages = Pages { tools: list_of("tools", entries), ..Pages::default() };
        Some(Arc::new(Slice::build(&plan.backends[id], INITIALIZE.as_bytes(), &pages).unwrap()))
    }

    fn resources(
        plan: &Plan,
        id: BackendId,
        uris: &[&str],
        templates: &[&str],
    ) -> Option<Arc<Slice>> {
        let join = |key: &str, all: &[&str]| {
            let entries: Vec<_> =
                all.iter().map(|u| format!(r#"{{"{key}":"{u}","of":{id}}}"#)).collect();
            entries.join(",")
        };
        let pages = Pages {
            resources: list_of("resources", &join("uri", uris)),
            templates: list_of("resourceTemplates", &join("uriTemplate", templates)),
            ..Pages::default()
        };
        Some(Arc::new(Slice::build(&plan.backends[id], INITIALIZE.as_bytes(), &pages).unwrap()))
    }

    fn text(catalog: &Catalog, kind: ListKind) -> String {
        String::from_utf8(catalog.list(kind).to_vec()).unwrap()
    }

    #[test]
    fn entries_keep_every_byte_but_the_name() {
        let plan = plan(&[("a", "a__")]);
        let mut catalog = Catalog::new(&plan);
        // Order of keys, space, number text beyond 2^53, escapes, unknown members, a nested name.
        let entry = r#"{ "x" : 9007199254740993 , "inputSchema":{"name":1e2,"$defs":{"z":{},"a":1.0}},"name" :"caf\u00e9\/\"q","title":"ü\ud83d\ude00","name2":null }"#;
        let expected = entry.replace(r#""name" :""#, r#""name" :"a__"#);
        catalog.set(0, tools(&plan, 0, entry));
        assert_eq!(text(&catalog, ListKind::Tools), format!(r#"{{"tools":[{expected}]}}"#));
        let slice = catalog.slice(0).unwrap();
        assert_eq!(slice.tools.find("café/\"q").unwrap(), expected.as_bytes());
        assert_eq!(slice.tools.find("a__café/\"q"), None);
        let all: Vec<_> = slice.tools.iter().collect();
        assert_eq!(all, [("café/\"q", expected.as_bytes())]);
    }

    #[test]
    fn a_prefix_is_written_as_json_and_an_empty_one_not_at_all() {
        let plan = plan(&[("a", "a\"\\/"), ("b", "")]);
        let mut catalog = Catalog::new(&plan);
        catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#));
        catalog.set(1, tools(&plan, 1, r#"{"name":"y"}"#));
        let list = text(&catalog, ListKind::Tools);
        assert_eq!(list, r#"{"tools":[{"name":"a\"\\/x"},{"name":"y"}]}"#);
        let value: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!(value["tools"][0]["name"], "a\"\\/x");
    }

    #[test]
    fn lists_are_in_the_order_of_the_file_whoever_comes_first() {
        let plan = plan(&[("a", "a__"), ("b", "b__"), ("c", "c__")]);
        let mut catalog = Catalog::new(&plan);
        assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[]}"#);
        assert_eq!(text(&catalog, ListKind::Templates), r#"{"resourceTemplates":[]}"#);
        catalog.set(2, tools(&plan, 2, r#"{"name":"2"},{"name":"1"}"#));
        catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#));
        catalog.set(1, tools(&plan, 1, ""));
        assert_eq!(
            text(&catalog, ListKind::Tools),
            r#"{"tools":[{"name":"a__x"},{"name":"c__2"},{"name":"c__1"}]}"#
        );
        catalog.set(0, None);
        assert_eq!(
            text(&catalog, ListKind::Tools),
            r#"{"tools":[{"name":"c__2"},{"name":"c__1"}]}"#
        );
    }

    #[test]
    fn all_pages_are_joined() {
        let plan = plan(&[("a", "")]);
        let pages: Vec<Vec<u8>> = [
            r#"{"tools":[{"name":"1"},{"name":"2"}],"nextCursor":"x"}"#,
            r#"{"tools":[],"nextCursor":"y"}"#,
            r#" { "_meta":{"tools":[{"name":"no"}]}, "tools" : [ {"name":"3"} ] } "#,
            r#"{"tools":null}"#,
            r#"{}"#,
        ]
        .map(|page| page.as_bytes().to_vec())
        .into();
        let list = List::build(&plan.backends[0], ListKind::Tools, &pages).unwrap();
        let names: Vec<_> = list.iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, ["1", "2", "3"]);
        assert_eq!(&*list.text, br#"{"name":"1"},{"name":"2"},{"name":"3"}"#);
    }

    #[test]
    fn what_nobody_could_call_is_left_out() {
        let plan = plan(&[("a", "a__")]);
        let entries = r#"{"name":"ok"},{"name":1},{},[],"x",null,{"name":""},{"name":"ok","second":1},{"name":"p","name":"q"},{"name":"p","n\u0061me":"q"},{"n\u0061me":"esc"}"#;
        let list =
            List::build(&plan.backends[0], ListKind::Tools, &list_of("tools", entries)).unwrap();
        let names: Vec<_> = list.iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, ["ok", "esc"]);
        assert_eq!(list.skipped(), 9);
        assert_eq!(list.find("esc").unwrap(), br#"{"n\u0061me":"a__esc"}"#);
    }

    #[test]
    fn answers_out_of_protocol() {
        let plan = plan(&[("a", "")]);
        let build = |initialize: &str, tools: &str| {
            let pages = Pages { tools: vec![tools.as_bytes().to_vec()], ..Pages::default() };
            Slice::build(&plan.backends[0], initialize.as_bytes(), &pages)
        };
        assert!(build(INITIALIZE, "{}").is_ok());
        for (initialize, tools) in [
            ("{}", "{}"),
            (r#"{"protocolVersion":"2025-06-18"}"#, "{}"),
            (r#"{"protocolVersion":1,"capabilities":{}}"#, "{}"),
            ("[]", "{}"),
            (INITIALIZE, "[]"),
            (INITIALIZE, r#"{"tools":{}}"#),
            (INITIALIZE, r#"{"tools":[}"#),
            (INITIALIZE, ""),
        ] {
            let error = build(initialize, tools).expect_err(tools);
            assert_eq!(error.kind(), Kind::BadAnswer, "{initialize} {tools}");
        }
    }

    #[test]
    fn what_initialize_said() {
        let plan = plan(&[("a", "")]);
        let initialize = r#"{"instructions":"say \"hi\"","capabilities":{"prompts":{ "x" : 1 },"logging":null},"serverInfo":{"name":"ü"},"protocolVersion":"2024-11-05"}"#;
        let slice =
            Slice::build(&plan.backends[0], initialize.as_bytes(), &Pages::default()).unwrap();
        assert_eq!(slice.revision, "2024-11-05");
        assert_eq!(slice.instructions.as_deref(), Some(r#"say "hi""#));
        assert_eq!(&*slice.server_info, r#"{"name":"ü"}"#);
        assert_eq!(&*slice.capabilities, r#"{"prompts":{ "x" : 1 },"logging":null}"#);
        assert!(slice.can("prompts"));
        assert!(!slice.can("logging"));
        assert!(!slice.can("tools"));
    }

    #[test]
    fn one_list_is_fetched_anew() {
        let plan = plan(&[("a", "a__")]);
        let mut catalog = Catalog::new(&plan);
        let first = tools(&plan, 0, r#"{"name":"x"}"#);
        catalog.set(0, first.clone());
        let second = first
            .unwrap()
            .with_list(&plan.backends[0], ListKind::Prompts, &list_of("prompts", r#"{"name":"p"}"#))
            .unwrap();
        let changes = catalog.set(0, Some(Arc::new(second)));
        assert_eq!(changes, Changes { prompts: true, ..Changes::default() });
        assert_eq!(text(&catalog, ListKind::Prompts), r#"{"prompts":[{"name":"a__p"}]}"#);
        assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[{"name":"a__x"}]}"#);
    }

    #[test]
    fn changes_are_exact() {
        let plan = plan(&[("a", ""), ("b", "")]);
        let mut catalog = Catalog::new(&plan);
        let none = Changes::default();
        assert_eq!(catalog.set(0, None), none);
        assert_eq!(catalog.set(0, tools(&plan, 0, "")), none, "known now, but nothing to see");
        assert!(catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#)).tools);
        assert_eq!(catalog.set(0, tools(&plan, 0, r#"{"name":"x"}"#)), none, "the same again");
        assert!(catalog.set(0, tools(&plan, 0, r#"{"name":"x","description":""}"#)).tools);
        // Hidden by the first backend's, so nobody sees a difference.
        assert_eq!(catalog.set(1, tools(&plan, 1, r#"{"name":"x","other":1}"#)), none);
        assert!(catalog.set(0, None).tools, "now it is seen");
        assert!(text(&catalog, ListKind::Tools).contains("other"));
        let resources_only = Changes { resources: true, ..none };
        assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &[])), resources_only);
        assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &["a:{b}"])), resources_only);
        assert_eq!(catalog.set(0, resources(&plan, 0, &["a:1"], &["a:{b}"])), none);
        assert_eq!(catalog.set(0, None), resources_only);
    }

    #[test]
    fn of_two_bare_names_the_first_in_the_file_wins() {
        let plan = plan(&[("a", ""), ("b", ""), ("git", "git__")]);
        let mut catalog = Catalog::new(&plan);
        catalog.set(1, tools(&plan, 1, r#"{"name":"x","of":"b"},{"name":"y","of":"b"}"#));
        assert_eq!(catalog.owner_of_name(ListKind::Tools, "x"), Some(1));
        assert_eq!(catalog.conflict_count(), 0);
        catalog.set(0, tools(&plan, 0, r#"{"name":"x","of":"a"}"#));
        assert_eq!(catalog.owner_of_name(ListKind::Tools, "x"), Some(0));
        assert_eq!(catalog.owner_of_name(ListKind::Tools, "y"), Some(1));
        assert_eq!(catalog.owner_of_name(ListKind::Tools, "z"), None);
        assert_eq!(catalog.owner_of_name(ListKind::Prompts, "x"), None);
        assert_eq!(
            text(&catalog, ListKind::Tools),
            r#"{"tools":[{"name":"x","of":"a"},{"name":"y","of":"b"}]}"#
        );
        let conflict = Conflict {
            kind: ListKind::Tools,
            key: "x".into(),
            owner: "a".into(),
            hidden: "b".into(),
        };
        assert_eq!(catalog.conflicts().collect::<Vec<_>>(), [&conflict]);
        assert_eq!(catalog.new_conflicts().count(), 1);
        assert_eq!(conflict.to_string(), r#"tools/list: "x" of backend b is hidden by backend a"#);
        // Another change brings another conflict; the first is not news.
        catalog.set(0, tools(&plan, 0, r#"{"name":"y","of":"a"},{"name":"x","of":"a"}"#));
        assert_eq!(catalog.conflict_count(), 2);
        let news: Vec<_> = catalog.new_conflicts().map(|conflict| &*conflict.key).collect();
        assert_eq!(news, ["y"]);
        catalog.set(2, tools(&plan, 2, ""));
        assert_eq!(catalog.new_conflicts().count(), 0);
        assert_eq!(catalog.conflict_count(), 2);
        catalog.set(0, None);
        assert_eq!(catalog.conflict_count(), 0);
    }

    #[test]
    fn nobody_takes_a_name_under_the_prefix_of_another() {
        let plan = plan(&[("sly", ""), ("git", "git__")]);
        let mut catalog = Catalog::new(&plan);
        catalog.set(0, tools(&plan, 0, r#"{"name":"git__push"},{"name":"git__"},{"name":"x"}"#));
        assert_eq!(text(&catalog, ListKind::Tools), r#"{"tools":[{"name":"git__"},{"name":"x"}]}"#);
        let conflict = catalog.conflicts().next().unwrap();
        assert_eq!((&*conflict.owner, &*conflict.hidden), ("git", "sly"));
        catalog.set(1, tools(&plan, 1, r#"{"name":"push"}"#));
        assert_eq!(
            text(&catalog, ListKind::Tools),
            r#"{"tools":[{"name":"git__"},{"name":"x"},{"name":"git__push"}]}"#
        );
        // Two backends with prefixes may call their own tools alike.
        assert_eq!(catalog.owner_of_name(ListKind::Tools, "push"), None);
    }

    #[test]
    fn owners_of_resources() {
        let plan = plan(&[("a", "a__"), ("b", "b__"), ("c", "c__")]);
        let mut catalog = Catalog::new(&plan);
        catalog.set(0, resources(&plan, 0, &["a://1", "x://1"], &["t://{id}", "a://{+all}"]));
        catalog
            .set(1, resources(&plan, 1, &["b://1", "x://1", "a://2"], &["t://{id}", "b://{id}"]));
        assert_eq!(catalog.owner_of_uri("a://1"), Some(0));
        assert_eq!(catalog.owner_of_uri("x://1"), Some(0), "the first in the file");
        assert_eq!(catalog.owner_of_uri("a://2"), Some(1), "listed comes before a template");
        assert_eq!(catalog.owner_of_uri("a://3"), Some(0));
        assert_eq!(catalog.owner_of_uri("b://2"), Some(1));
        assert_eq!(catalog.owner_of_uri("b://2/3"), None);
        assert_eq!(catalog.owner_of_uri("c://1"), None);
        assert_eq!(catalog.contested_reads(), 0);
        assert_eq!(catalog.owner_of_uri("t://9"), Some(0));
        assert_eq!(catalog.contested_reads(), 1);
        let conflicts: Vec<_> = catalog.conflicts().map(|c| (c.kind, &*c.key)).collect();
        assert_eq!(conflicts, [(ListKind::Resources, "x://1"), (ListKind::Templates, "t://{id}")]);
        // URIs are not renamed, and each is listed once.
        assert_eq!(
            text(&catalog, ListKind::Resources),
            r#"{"resources":[{"uri":"a://1","of":0},{"uri":"x://1","of":0},{"uri":"b://1","of":1},{"uri":"a://2","of":1}]}"#
        );
        catalog.set(0, None);
        assert_eq!(catalog.owner_of_uri("x://1"), Some(1));
    }

    #[test]
    fn conflicts_are_bounded() {
        let plan = plan(&[("a", ""), ("b", "")]);
        let mut catalog = Catalog::new(&plan);
        let names: Vec<_> =
            (0..CONFLICTS_KEPT_MAX + 5).map(|n| format!(r#"{{"name":"{n}"}}"#)).collect();
        catalog.set(0, tools(&plan, 0, &names.join(",")));
        catalog.set(1, tools(&plan, 1, &names.join(",")));
        assert_eq!(catalog.conflicts().count(), CONFLICTS_KEPT_MAX);
        assert_eq!(catalog.conflict_count(), CONFLICTS_KEPT_MAX + 5);
    }

    #[test]
    fn capabilities_promise_what_an_unknown_backend_might_bring() {
        const ALL: &str = r#"{"tools":{"listChanged":true},"resources":{"listChanged":true,"subscribe":true},"prompts":{"listChanged":true},"logging":{},"completions":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}"#;
        let plan = plan(&[("a", "a__"), ("b", "b__")]);
        let mut catalog = Catalog::new(&plan);
        assert_eq!(catalog.capabilities(), ALL);
        assert_eq!(catalog.unknown(), 2);
        catalog.set(0, tools(&plan, 0, ""));
        assert_eq!(catalog.capabilities(), ALL);
        catalog.set(1, tools(&plan, 1, ""));
        assert_eq!(catalog.unknown(), 0);
        assert_eq!(catalog.capabilities(), r#"{"tools":{"listChanged":true}}"#);
        // A template without the capability: some servers forget to say so.
        catalog.set(1, resources(&plan, 1, &[], &["a:{b}"]));
        assert_eq!(
            catalog.capabilities(),
            r#"{"tools":{"listChanged":true},"resources":{"listChanged":true}}"#
        );
        catalog.set(0, None);
        assert_eq!(catalog.capabilities(), ALL);
        let none = Catalog::new(&self::plan(&[]));
        assert_eq!(none.capabilities(), "{}");
    }

    #[test]
    fn instructions_are_labelled_when_there_are_several_backends() {
        let with = |plan: &Plan, id: BackendId, text: &str| {
            let initialize =
                format!(r#"{{"protocolVersion":"x","capabilities":{{}},"instructions":"{text}"}}"#);
            let slice =
                Slice::build(&plan.backends[id], initialize.as_bytes(), &Pages::default()).unwrap();
            Some(Arc::new(slice))
        };
        let two = plan(&[("a", "a__"), ("b", "b__")]);
        let mut catalog = Catalog::new(&two);
        assert_eq!(catalog.instructions(), None);
        catalog.set(1, with(&two, 1, "Be\\nkind."));
        assert_eq!(catalog.instructions().unwrap(), "## b\n\nBe\nkind.");
        catalog.set(0, with(&two, 0, "Hi."));
        assert_eq!(catalog.instructions().unwrap(), "## a\n\nHi.\n\n## b\n\nBe\nkind.");
        let one = plan(&[("a", "a__")]);
        let mut catalog = Catalog::new(&one);
        catalog.set(0, with(&one, 0, "Hi."));
        assert_eq!(catalog.instructions().unwrap(), "Hi.");
        catalog.set(0, with(&one, 0, ""));
        assert_eq!(catalog.instructions(), None);
    }

    #[test]
    fn cursors() {
        let cursor = |result: &str| {
            let found = next_cursor(result.as_bytes()).ok()?;
            Some(found.map(|span| span.of(result.as_bytes()).to_vec()))
        };
        assert_eq!(cursor(r#"{"tools":[]}"#), Some(None));
        assert_eq!(cursor(r#"{"nextCursor":null}"#), Some(None));
        assert_eq!(
            cursor(r#"{"tools":[],"nextCursor":"a\"b"}"#),
            Some(Some(br#""a\"b""#.to_vec()))
        );
        assert_eq!(cursor(r#"{"nextCursor":5}"#), None);
        assert_eq!(cursor("[]"), None);
    }

    #[test]
    fn a_slice_crosses_threads() {
        fn sendable<T: Send + Sync>() {}
        sendable::<Arc<Slice>>();
    }
}
