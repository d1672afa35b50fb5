//! Owns: what the parent tells its clients, and what they tell it: one line of JSON each.
//! Never: anything about rows or rounds; the clients know an address and what to send.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How clients, or the server behind, speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Era {
    /// `initialize`, then requests in a session (2025-11-25).
    #[default]
    Session,
    /// Requests that stand alone (2026-07-28).
    Request,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Method {
    #[default]
    #[serde(rename = "tools/call")]
    Call,
    #[serde(rename = "tools/list")]
    List,
}

impl Method {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Method::Call => "tools/call",
            Method::List => "tools/list",
        }
    }
}

/// How the server behind sends a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    #[default]
    Json,
    /// As an event stream.
    Sse,
}

/// What the text of a result looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Text {
    /// One letter again and again: the least that a reader can have to do.
    #[default]
    Letters,
    /// Records in JSON, as most servers send what they have: every seventh byte begins an escape.
    Json,
}

/// One kind of request, as a scenario has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Bytes of the server's answer to a call, from brace to brace.
    pub(crate) result_bytes: usize,
    pub(crate) text: Text,
    /// Bytes that fill the arguments up; the shortest request has 200 anyway.
    pub(crate) argument_bytes: usize,
    pub(crate) answer: Form,
    /// Progress notifications before the result, which then comes as an event stream.
    pub(crate) progress: usize,
    /// How long the server thinks.
    pub(crate) delay_ms: u64,
    /// How often it is made, in proportion to the scenario's other calls.
    pub(crate) share: usize,
}

impl Default for Call {
    fn default() -> Call {
        Call {
            method: Method::Call,
            result_bytes: 200,
            text: Text::Letters,
            argument_bytes: 0,
            answer: Form::Json,
            progress: 0,
            delay_ms: 0,
            share: 1,
        }
    }
}

/// What is opened and then left alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Idle {
    /// MCP sessions that have made one call, without connections.
    Sessions,
    /// Connections that have made one call, all in one session.
    Connections,
    /// Sessions that have made one call, with a GET stream each.
    Streams,
}

/// Where to send requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) addr: SocketAddr,
    /// The Host field.
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) bearer: Option<String>,
}

/// What to send.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) place: Place,
    pub(crate) era: Era,
    pub(crate) connections: usize,
    /// Of each connection, which takes them in turns.
    pub(crate) sessions: usize,
    pub(crate) calls: Vec<Call>,
    /// The names of the server's tool, as they are here; each call goes to each of them.
    pub(crate) tools: Vec<String>,
    /// Tools that a list must have.
    pub(crate) listed: usize,
    /// Requests per second of all connections together, whatever the answers do. Without it each
    /// connection sends its next request when it has its answer.
    pub(crate) rate: Option<f64>,
    pub(crate) warmup_ms: u64,
    pub(crate) measure_ms: u64,
    /// Whether what fails is told one by one, and the load goes on.
    pub(crate) tolerant: bool,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// An answer that is not the one to the request: never to be excused.
    Wrong,
    /// An error in answer, or a status that says so.
    Failed,
    /// The connection broke, or could not be made.
    Lost,
    /// No answer for so long that none is expected any more.
    Hung,
}

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Which of the job's tools it was for.
    pub(crate) tool: usize,
    /// Milliseconds since 1970: when it was sent, and when it had failed.
    pub(crate) sent: u64,
    pub(crate) failed: u64,
}

/// What clients have seen, at their end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Requests that count, and the time in which they do.
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
    /// Latencies from when a request was due, as the parts of a histogram.
    pub(crate) latency: (u64, Vec<(usize, u64)>),
    /// The same from when it was really sent, which hides what had to wait for its turn.
    pub(crate) service: (u64, Vec<(usize, u64)>),
}

/// What clients say on stdout, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// Requests count from now on, until `End`.
    Begin,
    End,
    /// So far, about each second of a tolerant job.
    Tick {
        requests: u64,
        errors: u64,
    },
    Fault(Fault),
    Done(Figures),
    /// All that is to be idle is open.
    Open,
    /// All of it is closed again.
    Left,
}

impl Word {
    pub(crate) fn say(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}
