//! Owns: one list of one backend, every entry as its backend wrote it but for the name.
//! Never: other backends' lists.
//! Next: `slice`, all lists of a backend.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::time::Instant;

use super::{ListKind, bad_answer};
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Span, walk};
use crate::limits::LIST_ENTRIES_MAX;
use crate::mcp::cache::Fresh;
use crate::mcp::hints::Hints;
use crate::mcp::mirrored::{self, Mirrored};
use crate::mcp::template::Template;
use crate::plan::BackendPlan;

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

/// One list of one backend.
#[derive(Debug, Default)]
pub struct List {
    /// All entries with commas between them, names prefixed.
    pub(super) text: Box<[u8]>,
    pub(super) entries: Vec<Entry>,
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
pub(super) struct Entry {
    /// The name that clients see, before the prefix; the URI, or the text of the template.
    pub(super) key: Arc<str>,
    /// The backend's own name, if it is another.
    own: Option<Arc<str>>,
    /// What a tool says about itself.
    hints: Hints,
    /// In the list's text.
    pub(super) span: Span,
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
        let hints = draft.hints;
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
    pub(super) fn expands_to(&self, uri: &str) -> bool {
        let shown = self.entries.iter().filter_map(|entry| entry.template.as_ref());
        shown.chain(&self.hidden).any(|template| template.matches(uri))
    }
}

/// The key of an entry's name and the name, both raw.
fn name_of(kind: ListKind, entry: &[u8]) -> Option<(Span, Span)> {
    let mut members = walk::members_of_checked(entry)?;
    members.find(|(key, _)| walk::key_is(key.of(entry), kind.key()))
}
