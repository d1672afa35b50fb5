//! Owns: questions of workers to the control plane, and its answers.
//! Never: who may ask (`exchange`); what is answered (`control`).
//! Next: `control`, which sits behind it.
//!
//! A worker never waits for the control thread: it leaves a question and goes on, and the answer
//! comes with the mail.

use crate::plan::WorkerId;

/// What a worker wants to know.
#[derive(Debug)]
pub struct Question {
    /// Who asks.
    pub worker: WorkerId,
    /// Comes back with the answer.
    pub token: u64,
    /// What.
    pub wanted: Wanted,
}

/// See [`Question`].
#[derive(Debug)]
pub enum Wanted {
    /// A request to `/admin`.
    Page {
        /// `GET`, `POST`, `DELETE` or another.
        method: &'static str,
        /// Behind `/admin/`.
        path: String,
        /// Its body, bounded.
        body: Vec<u8>,
    },
    /// What a tool of the proxy's own says.
    Tool {
        /// Its own name.
        name: &'static str,
        /// Of the call, checked; empty = there were none.
        arguments: Vec<u8>,
    },
}

/// The control plane's answer.
#[derive(Debug)]
pub enum Reply {
    /// This is it.
    Page(Page),
    /// What a tool says: a JSON object, as text.
    Said(String),
    /// Why a tool did not do what it was asked for, in words for whoever called it.
    Declined(String),
    /// The tool does not exist.
    NoTool,
    /// The workers know: a list of the sessions.
    Sessions,
    /// The workers are to end the session of this public name.
    EndSession(String),
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Whole field lines, each ended by CRLF.
    pub lines: String,
    /// Content.
    pub body: Vec<u8>,
}

impl Page {
    /// A JSON document.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Page {
        let lines = "Content-Type: application/json\r\nCache-Control: no-store\r\n".to_owned();
        Page { status, lines, body: body.into() }
    }

    /// `{error, message}`; both are plain words without quotes.
    pub fn error(status: u16, error: &str, message: &str) -> Page {
        let body = serde_json::json!({ "error": error, "message": message });
        Page::json(status, body.to_string())
    }
}

/// Takes a question to the control plane; gives it back when there are too many.
type Ask = Box<dyn Fn(Question) -> Result<(), Question> + Send>;

/// A worker's way to the control plane.
pub struct Desk(Ask);

impl Desk {
    /// A desk that takes questions there.
    pub fn new(ask: Ask) -> Desk {
        Desk(ask)
    }

    /// Leaves a question.
    ///
    /// # Errors
    /// The question, if there are too many.
    pub fn ask(&self, question: Question) -> Result<(), Question> {
        (self.0)(question)
    }
}
