//! Owns: what all backends offer together: merged lists, owners of names and URIs, capabilities,
//! instructions.
//! Never: fetching (`backend`), prefixes of names that are called (`name`).
//! Next: `pages`.
//!
//! A [`Slice`] is what one backend offers, immutable, built once where it was fetched and shared by
//! all workers. A [`Catalog`] is one worker's view of all slices: every list is rendered when a
//! slice changes, and is then only copied.
//!
//! Entries keep every byte that their backend wrote, but for the prefix before their name. They are
//! found by byte ranges: a tree of values (simd-json's or serde_json's) would have to be written out
//! again, and would lose number text, escapes and the order of keys.

mod list;
mod pages;
mod slice;

pub use list::{Draft, List};
pub use pages::{ListKind, Pages, next_cursor};
pub use slice::{Can, Slice};

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::Fresh;
use super::envelope::{self, CARRIED_MODERN, TASKS};
use crate::error::{Error, Kind};
use crate::jsonrpc::{self, walk};
use crate::plan::{BackendId, BackendPlan, Plan, slot};

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

impl Changes {
    /// With these.
    pub fn add(&mut self, more: Changes) {
        self.tools |= more.tools;
        self.resources |= more.resources;
        self.prompts |= more.prompts;
    }

    /// Those that are not among `others`.
    pub fn without(self, others: Changes) -> Changes {
        Changes {
            tools: self.tools && !others.tools,
            resources: self.resources && !others.resources,
            prompts: self.prompts && !others.prompts,
        }
    }
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

impl Conflict {
    /// What helps: tools and prompts can have other names, URIs are the server's alone.
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            ListKind::Tools | ListKind::Prompts => {
                "give one of the two backends another prefix, or this name another one in its aliases"
            }
            ListKind::Resources | ListKind::Templates => {
                "name it in hide_resources of one of the two"
            }
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict { kind, key, owner, hidden } = self;
        write!(f, "{}: {key:?} of backend {hidden} is hidden by backend {owner}", kind.method())
    }
}

/// Conflicts that are kept to be told, for each list; the rest is hidden without a word.
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
    contested: Arc<AtomicU64>,
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
        let (capabilities, contested) = Default::default();
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
        Catalog { places, at, lists, capabilities, contested: self.contested.clone() }
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
            self.contested.fetch_add(1, Ordering::Relaxed);
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
        self.contested.load(Ordering::Relaxed)
    }

    /// Counts those reads here from now on, together with other catalogues.
    pub fn count_contested_reads(&mut self, contested: &Arc<AtomicU64>) {
        self.contested = contested.clone();
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
        let (mut conflicts, mut more_conflicts) = (Vec::new(), 0);
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
mod tests;
