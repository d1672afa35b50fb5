//! Owns: which lists there are, and the pages that they come in.
//! Never: what stands in them.
//! Next: `list`.

use super::bad_answer;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{Span, walk};

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
    pub(super) const fn prefixed(self) -> bool {
        matches!(self, ListKind::Tools | ListKind::Prompts)
    }
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
