//! Owns: scenarios as TOML: what is sent, by how many, to which rows.
//! Never: a fault found while it runs: a file is checked whole before anything is started.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::job::{Call, Era, Form, Idle, Method};
use crate::request;

/// The scenarios that come with the program.
const SHIPPED: &str = include_str!("scenarios.toml");

/// What can stand between the clients and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Row {
    /// Nothing.
    Direct,
    Nginx,
    /// The minimal proxy on hyper and tokio.
    Hyper,
    /// What carries bytes and no more.
    Relay,
    /// mcp-proxy with the rules of the scenario.
    Proxy,
    /// mcp-proxy without them.
    Plain,
    /// mcp-proxy before a child process.
    Stdio,
    /// Another build of mcp-proxy with the rules of the scenario; comes with `--other` alone.
    #[serde(skip_deserializing)]
    Other,
}

impl Row {
    pub(crate) const NAMES: [(&'static str, Row); 7] = [
        ("direct", Row::Direct),
        ("nginx", Row::Nginx),
        ("hyper", Row::Hyper),
        ("relay", Row::Relay),
        ("proxy", Row::Proxy),
        ("plain", Row::Plain),
        ("stdio", Row::Stdio),
    ];
}

/// One thing to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// Unique; letters, digits and hyphens.
    pub(crate) name: String,
    /// A line for people.
    #[serde(default)]
    pub(crate) title: String,
    #[serde(default = "connections")]
    pub(crate) connections: usize,
    /// MCP sessions of all connections together; at least one each.
    #[serde(default)]
    pub(crate) sessions: usize,
    /// How the clients speak.
    #[serde(default)]
    pub(crate) era: Era,
    /// How the server behind speaks; the same way, unless said otherwise.
    #[serde(default)]
    pub(crate) backend_era: Option<Era>,
    /// Requests per second, whatever the answers do; without it, as fast as they come.
    #[serde(default)]
    pub(crate) rate: Option<f64>,
    /// At a fixed pace too: this share of what the slowest row manages when nothing holds it back.
    #[serde(default)]
    pub(crate) of_capacity: Option<f64>,
    /// One call with a result of 200 bytes, unless said otherwise.
    #[serde(default = "calls")]
    pub(crate) calls: Vec<Call>,
    /// Tools of the server.
    #[serde(default = "one")]
    pub(crate) tools: usize,
    /// The server stands still for `stall_ms` every `stall_every_ms`.
    #[serde(default)]
    pub(crate) stall_ms: u64,
    #[serde(default)]
    pub(crate) stall_every_ms: u64,
    #[serde(default = "rows")]
    pub(crate) rows: Vec<Row>,
    /// Workers of mcp-proxy, nginx, hyper and the relay; a row for each number.
    #[serde(default = "workers")]
    pub(crate) workers: Vec<usize>,
    /// The token that clients send.
    #[serde(default)]
    pub(crate) bearer: Option<String>,
    /// TOML of mcp-proxy: tables beside `[proxy]`, and keys and tables of its backend.
    #[serde(default)]
    pub(crate) proxy: String,
    #[serde(default)]
    pub(crate) backend: String,
    /// Opens as many of these as there are connections, and looks at memory instead of calls.
    #[serde(default)]
    pub(crate) idle: Option<Idle>,
    /// Part of `--quick`; of a run that names none.
    #[serde(default)]
    pub(crate) quick: bool,
    #[serde(default = "yes")]
    pub(crate) default: bool,
}

fn connections() -> usize {
    32
}

fn one() -> usize {
    1
}

fn calls() -> Vec<Call> {
    vec![Call::default()]
}

fn rows() -> Vec<Row> {
    vec![Row::Direct, Row::Nginx, Row::Hyper, Row::Proxy]
}

fn workers() -> Vec<usize> {
    vec![1]
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    scenarios: Vec<Scenario>,
}

impl Scenario {
    /// One that is made from arguments.
    pub(crate) fn of(connections: usize, result_bytes: usize) -> Scenario {
        Scenario {
            name: format!("c{connections}-{result_bytes}"),
            title: format!("{connections} connection(s), results of {result_bytes} B"),
            connections,
            sessions: 0,
            era: Era::Session,
            backend_era: None,
            rate: None,
            of_capacity: None,
            calls: vec![Call { result_bytes, ..Call::default() }],
            tools: 1,
            stall_ms: 0,
            stall_every_ms: 0,
            rows: vec![Row::Direct, Row::Nginx, Row::Hyper, Row::Relay, Row::Proxy, Row::Stdio],
            workers: workers(),
            bearer: None,
            proxy: String::new(),
            backend: String::new(),
            idle: None,
            quick: false,
            default: false,
        }
    }

    pub(crate) fn behind(&self) -> Era {
        self.backend_era.unwrap_or(self.era)
    }

    /// Sessions of each connection.
    pub(crate) fn sessions_each(&self) -> usize {
        self.sessions.div_ceil(self.connections.max(1)).max(1)
    }

    fn faults(&self, out: &mut Vec<String>) {
        let mut fault = |text: String| out.push(format!("scenario {:?}: {text}", self.name));
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if self.name.is_empty() || !self.name.chars().all(fits) {
            fault("a name has letters, digits, - and _".into());
        }
        if !(1..=100_000).contains(&self.connections) {
            fault(format!("connections = {}; from 1 to 100000", self.connections));
        }
        if let Some(rate) = self.rate.filter(|rate| !(0.1..=1_000_000.0).contains(rate)) {
            fault(format!("rate = {rate}; from 0.1 to 1000000 per second"));
        }
        if let Some(share) = self.of_capacity {
            if !(0.01..=0.95).contains(&share) {
                fault(format!("of_capacity = {share}; from 0.01 to 0.95"));
            }
            if self.rate.is_some() || self.idle.is_some() {
                fault("of_capacity stands without rate and idle".into());
            }
        }
        if self.workers.is_empty() || self.workers.iter().any(|n| !(1..=256).contains(n)) {
            fault(format!("workers = {:?}; each from 1 to 256", self.workers));
        }
        if (self.stall_ms > 0) != (self.stall_every_ms > 0) {
            fault("stall_ms and stall_every_ms belong together".into());
        }
        if self.tools == 0 {
            fault("tools = 0; the first one is the one that is called".into());
        }
        if self.idle.is_some() && self.era == Era::Request {
            fault("idle needs era = \"session\"".into());
        }
        if self.behind() == Era::Request && self.era == Era::Session {
            for (name, row) in Row::NAMES {
                let translates = matches!(row, Row::Proxy | Row::Plain | Row::Stdio);
                if self.rows.contains(&row) && !translates {
                    fault(format!("row {name:?} needs clients that speak as the server does"));
                }
            }
        }
        if self.calls.iter().all(|call| call.share == 0) {
            fault("no calls: each share is 0".into());
        }
        for call in &self.calls {
            if call.method == Method::Call && call.result_bytes < request::RESULT_BYTES_MIN {
                fault(format!(
                    "result_bytes = {}; at least {}, which its frame takes",
                    call.result_bytes,
                    request::RESULT_BYTES_MIN
                ));
            }
            let plain = call.answer == Form::Json && call.progress == 0 && call.delay_ms == 0;
            if call.method == Method::List && !plain {
                fault("tools/list has neither answer, progress nor delay_ms".into());
            }
        }
    }
}

/// The scenarios of a file, or the shipped ones.
pub(crate) fn load(file: Option<&Path>) -> Result<Vec<Scenario>> {
    match file {
        None => parse(SHIPPED, "the shipped scenarios"),
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|e| format!("{name}: {e}"))?;
            parse(&text, &name)
        }
    }
}

/// What is wrong with one scenario, once arguments have changed it.
pub(crate) fn check(scenario: &Scenario) -> Result<()> {
    let mut faults = Vec::new();
    scenario.faults(&mut faults);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults.join("\n  ").into()),
    }
}

fn parse(text: &str, name: &str) -> Result<Vec<Scenario>> {
    let File { scenarios } = toml::from_str(text).map_err(|e| format!("{name}: {e}"))?;
    let mut faults = Vec::new();
    if scenarios.is_empty() {
        faults.push("no [[scenarios]]".to_owned());
    }
    for (at, scenario) in scenarios.iter().enumerate() {
        scenario.faults(&mut faults);
        if scenarios[..at].iter().any(|earlier| earlier.name == scenario.name) {
            faults.push(format!("scenario {:?} stands there twice", scenario.name));
        }
    }
    match faults.is_empty() {
        true => Ok(scenarios),
        false => Err(format!("{name}: {}", faults.join("\n  ")).into()),
    }
}
