//! Owns: what a backend's rules do to lists and messages: the one ordered table of rows.
//! Never: I/O, waiting, sockets; what repeats or abandons a call stands in `backend`.
//! Next: `arguments`, what several rows edit.
//!
//! A row is one file: its TOML, its compiled form, what it keeps per worker, its hooks. A backend
//! has at most one compiled value of each; a row that it has not costs one comparison. Requests go
//! through the table from top to bottom. Whoever is hidden by a rule is hidden on every path: lists
//! are shaped once, where they are fetched, and a call finds only what the shaped list shows.

pub mod alias;
pub mod arguments;
pub mod around;
pub mod breaker;
pub mod concurrency;
pub mod custom;
pub mod filter;
pub mod hedge;
pub mod inject;
pub mod mirror;
pub mod outlier;
pub mod params;
pub mod pattern;
mod quota;
pub mod rate;
pub mod retry;
pub mod reuse;
pub mod route;
pub mod validation;
mod window;

use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Span};
use crate::mcp::catalog::{Draft, ListKind};
use crate::mcp::hints::Hints;
use custom::{Hooks, Watch};
use reuse::{Held, Reusable};

/// What is known of the name that a client called.
pub struct Known<'k> {
    /// The backend's own name.
    pub own: &'k str,
    /// What a tool says about itself.
    pub hints: Hints,
}

/// A request on its way to a backend.
pub struct Request<'a> {
    /// What it is about.
    pub what: ListKind,
    /// The name as the client wrote it, prefix and all, for what it is told.
    pub called: &'a str,
    /// The name behind the prefix, or the URI; the backend's own once the aliases are behind it.
    pub own: String,
    /// The backend's name.
    pub backend: &'a str,
    /// What the list shows under that name.
    pub known: Option<Known<'a>>,
    /// Whether the backend's lists are known at all.
    pub listed: bool,
    /// The message.
    pub message: &'a mut Vec<u8>,
    /// Where its parts stand.
    pub envelope: &'a mut Envelope,
    /// Copies for other backends.
    pub copies: Vec<Copy>,
    /// Who asks; `None` without `[auth]`.
    pub principal: Option<&'a str>,
    /// The revision that the caller speaks.
    pub revision: &'a str,
    /// Looks for an answer that is kept.
    pub look: &'a dyn Fn(&Reusable) -> Option<Held>,
    /// The answer that was found: the backend will not hear of the request.
    pub held: Option<Held>,
    /// The middleware of the program that embeds the proxy.
    pub custom: Option<&'a dyn Hooks>,
    /// That middleware's eye on the end.
    pub watch: Option<Watch>,
    /// The answer that was found is that middleware's, and whether it is a refusal.
    pub decided: Option<bool>,
    /// What may be done with the answer.
    pub reusable: Option<Box<Reusable>>,
}

/// A copy of a request for another backend, whose answer nobody waits for.
pub struct Copy {
    /// Its index in the plan.
    pub backend: usize,
    /// The message.
    pub message: Vec<u8>,
    /// Where its parts stand.
    pub envelope: Envelope,
}

impl Request<'_> {
    /// The answer to who asks for something that is not there, or not for him: both look alike.
    pub fn unknown(&self) -> Error {
        let kind = match self.what {
            ListKind::Tools => Kind::UnknownTool,
            ListKind::Prompts => Kind::UnknownPrompt,
            ListKind::Resources | ListKind::Templates => Kind::ResourceNotFound,
        };
        Error::new(kind).context(self.called.to_owned())
    }

    /// What a tool says about itself; of an unknown one, nothing.
    pub fn hints(&self) -> Hints {
        self.known.as_ref().map_or(Hints::default(), |known| known.hints)
    }

    /// The arguments of a call; `None` if there are none, or null.
    pub fn arguments(&self) -> Option<&[u8]> {
        let raw = self.envelope.arguments?.of(self.message);
        (raw != b"null").then_some(raw)
    }

    /// Puts these arguments into the message.
    pub fn set_arguments(&mut self, new: &[u8]) -> Result<()> {
        if let Some(old) = self.envelope.arguments {
            return self.edit(old, new);
        }
        let Some(params) = self.envelope.params else {
            return Err(Error::new(Kind::InvalidParams).context("params are required"));
        };
        let end = params.end as usize - 1;
        let empty =
            self.message[params.start as usize + 1..end].iter().all(u8::is_ascii_whitespace);
        let mut text = Vec::with_capacity(new.len() + 16);
        text.extend_from_slice(if empty { b"" } else { b"," });
        text.extend_from_slice(b"\"arguments\":");
        text.extend_from_slice(new);
        self.edit(Span::new(end, end), &text)
    }

    /// Puts another name into the message.
    pub fn set_name(&mut self, name: &str) -> Result<()> {
        let Some(old) = self.envelope.name else { return Ok(()) };
        let mut new = Vec::with_capacity(name.len() + 2);
        jsonrpc::quote(name, &mut new);
        self.edit(old, &new)
    }

    fn edit(&mut self, old: Span, new: &[u8]) -> Result<()> {
        *self.message = jsonrpc::splice(self.message, &[(old, new)]);
        *self.envelope = jsonrpc::scan(self.message)
            .map_err(|fault| Error::new(fault.kind()).cause("after a rule's edit"))?;
        Ok(())
    }
}

/// One row of the table, compiled for one backend.
pub trait Row {
    /// Whether it changes lists.
    const LISTS: bool = false;
    /// Whether it looks at requests.
    const CALLS: bool = false;

    /// Shapes an entry of a list; `false` hides it.
    fn entry(&self, _draft: &mut Draft<'_>) -> bool {
        true
    }

    /// Looks at a request, and may change it.
    ///
    /// # Errors
    /// The answer that the caller gets instead.
    fn request(&self, _ask: &mut Request<'_>) -> Result<()> {
        Ok(())
    }
}

// For a row `filter: Filter` it makes: the field `pub filter: Option<Filter>` of `Chain`, and in
// each method one line such as `if let Some(row) = &self.filter { row.request(ask)?; }`, in the
// order of the table. Constants that a row leaves at `false` remove its line from the code. At the
// semicolon, requests go through the middleware of the program that embeds the proxy.
macro_rules! table {
    (
        $($(#[$doc:meta])* $row:ident: $kind:ty,)*;
        $($(#[$later_doc:meta])* $later:ident: $later_kind:ty,)*
    ) => {
        /// The rows of one backend, in their order.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Chain {
            $($(#[$doc])* pub $row: Option<$kind>,)*
            $($(#[$later_doc])* pub $later: Option<$later_kind>,)*
        }

        impl Chain {
            /// Whether lists go through untouched.
            pub fn spares_lists(&self) -> bool {
                true $(&& (!<$kind as Row>::LISTS || self.$row.is_none()))*
                    $(&& (!<$later_kind as Row>::LISTS || self.$later.is_none()))*
            }

            /// Whether requests go through untouched.
            pub fn spares_calls(&self) -> bool {
                true $(&& (!<$kind as Row>::CALLS || self.$row.is_none()))*
                    $(&& (!<$later_kind as Row>::CALLS || self.$later.is_none()))*
            }

            /// Shapes an entry of a list; `false` = it is hidden.
            pub fn entry(&self, draft: &mut Draft<'_>) -> bool {
                true $(&& (!<$kind as Row>::LISTS
                    || self.$row.as_ref().is_none_or(|row| row.entry(draft))))*
                    $(&& (!<$later_kind as Row>::LISTS
                        || self.$later.as_ref().is_none_or(|row| row.entry(draft))))*
            }

            /// Takes a request through all rows.
            ///
            /// # Errors
            /// The answer that the caller gets instead.
            pub fn request(&self, ask: &mut Request<'_>) -> Result<()> {
                $(if <$kind as Row>::CALLS && let Some(row) = &self.$row { row.request(ask)?; })*
                if let Some(hooks) = ask.custom && !custom::request(hooks, ask)? {
                    return Ok(());
                }
                $(if <$later_kind as Row>::CALLS && let Some(row) = &self.$later {
                    row.request(ask)?;
                })*
                Ok(())
            }
        }
    };
}

// The order is a security property: names are the backend's own before any rule looks at them,
// what is hidden is refused before anything is done for it, the client's own arguments are measured
// before others are put to them, and what an operator injects no client can see or undo. A program's
// own middleware sees what was allowed, and is asked before any answer that is kept.
table! {
    /// Names that tools and prompts have here.
    alias: alias::Alias,
    /// What is shown at all.
    filter: filter::Filter,
    /// How large arguments may be.
    validation: validation::SizeLimit,
    /// Parameters that look different here.
    params: params::Params,
    ;
    /// Which answers serve more than one call.
    reuse: reuse::Reuse,
    /// Who hears of calls too.
    mirror: mirror::Mirror,
    /// Arguments that are put to calls.
    inject: inject::Inject,
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the rows' own tests share.

    use std::borrow::Cow;

    use super::*;

    /// Shapes one entry: the name that is shown, and its text; `None` = hidden.
    pub(crate) fn shaped(row: &impl Row, what: ListKind, entry: &str) -> Option<(String, String)> {
        let name = jsonrpc::walk::member(entry.as_bytes(), "name").unwrap();
        let own = name.text(entry.as_bytes()).unwrap();
        let mut draft = Draft {
            what,
            own: &own,
            shown: Cow::Borrowed(&own),
            hints: Hints::of(entry.as_bytes()),
            entry: Cow::Borrowed(entry.as_bytes()),
        };
        let shown = row.entry(&mut draft);
        let text = String::from_utf8(draft.entry.into_owned()).unwrap();
        shown.then(|| (draft.shown.into_owned(), text))
    }

    /// Chance that can be repeated (SplitMix64).
    pub(crate) struct Dice(pub(crate) u64);

    impl Dice {
        pub(crate) fn roll(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        pub(crate) fn below(&mut self, bound: u64) -> u64 {
            self.roll() % bound
        }
    }

    /// One request and what a row made of it.
    pub(crate) struct Case {
        what: ListKind,
        pub(crate) own: String,
        pub(crate) known: Option<&'static str>,
        pub(crate) hints: Hints,
        pub(crate) listed: bool,
        message: Vec<u8>,
    }

    impl Case {
        fn new(what: ListKind, method: &str, params: &str, own: &str) -> Case {
            let message =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            let message = message.into_bytes();
            let (own, hints) = (own.to_owned(), Hints::default());
            Case { what, own, known: None, hints, listed: false, message }
        }

        pub(crate) fn tool(name: &str, arguments: &str) -> Case {
            let params = format!(r#"{{"name":"{name}","arguments":{arguments}}}"#);
            Case::new(ListKind::Tools, "tools/call", &params, name)
        }

        pub(crate) fn bare_tool(name: &str) -> Case {
            Case::new(ListKind::Tools, "tools/call", &format!(r#"{{"name":"{name}"}}"#), name)
        }

        pub(crate) fn prompt(name: &str, arguments: &str) -> Case {
            let params = format!(r#"{{"name":"{name}","arguments":{arguments}}}"#);
            Case::new(ListKind::Prompts, "prompts/get", &params, name)
        }

        pub(crate) fn resource(uri: &str) -> Case {
            Case::new(ListKind::Resources, "resources/read", &format!(r#"{{"uri":"{uri}"}}"#), uri)
        }

        pub(crate) fn run(&mut self, row: &impl Row) -> Result<()> {
            let mut envelope = jsonrpc::scan(&self.message).unwrap();
            let called = self.own.clone();
            let known = self.known.map(|own| Known { own, hints: self.hints });
            let mut ask = Request {
                what: self.what,
                called: &called,
                own: called.clone(),
                known,
                listed: self.listed,
                message: &mut self.message,
                envelope: &mut envelope,
                copies: Vec::new(),
                principal: None,
                revision: "2025-11-25",
                look: &|_| None,
                held: None,
                backend: "b",
                custom: None,
                watch: None,
                decided: None,
                reusable: None,
            };
            let result = row.request(&mut ask);
            self.own = ask.own;
            assert_eq!(jsonrpc::scan(&self.message).unwrap(), envelope);
            result
        }

        pub(crate) fn text(&self) -> &str {
            std::str::from_utf8(&self.message).unwrap()
        }
    }
}
