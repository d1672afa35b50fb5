//! Owns: a row as something that runs: where it is, whose CPU it takes, what its tool is called.
//! Never: a row that is measured before a call has reached the server behind it.
//! Next: `nginx`, `plain`, `relay`, `proxy`, how each is started.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::job::{Call, Era, Job, Method, Place};
use crate::process::{self, Running};
use crate::proxy::{self, Behind};
use crate::request::{self, Template};
use crate::scenario::{Row, Scenario};
use crate::wire::Line;
use crate::{Result, nginx};

/// The server of the measurement, over HTTP.
pub(crate) struct Backend {
    child: Option<Running>,
    pub(crate) addr: SocketAddr,
}

impl Backend {
    /// Starts it as the scenario wants it; on this port, or one that is free.
    pub(crate) fn start(scenario: &Scenario, port: u16) -> Result<Backend> {
        let mut args = vec![format!("--port={port}"), format!("--tools={}", scenario.tools)];
        args.push(format!("--stall-every-ms={}", scenario.stall_every_ms));
        args.push(format!("--stall-ms={}", scenario.stall_ms));
        args.extend((scenario.behind() == Era::Request).then(|| "--modern".to_owned()));
        let (child, addr) = announced(Running::again(|command| {
            command.arg("stub").args(&args).stdout(Stdio::piped())
        })?)?;
        Ok(Backend { child: Some(child), addr })
    }

    /// One that somebody else has started, with `loadtest stub`.
    pub(crate) fn at(addr: SocketAddr) -> Backend {
        Backend { child: None, addr }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        match &self.child {
            Some(child) => vec![child.pid()],
            None => process::listeners(self.addr.port()),
        }
    }
}

/// A role of this program that stands before the server as the proxy does.
fn baseline(role: &str, server: SocketAddr, workers: usize) -> Result<(Running, SocketAddr)> {
    announced(Running::again(|command| {
        let args = [role.to_owned(), server.to_string(), workers.to_string()];
        command.args(args).stdout(Stdio::piped())
    })?)
}

/// A child that writes its port to stdout.
fn announced(mut child: Running) -> Result<(Running, SocketAddr)> {
    let mut line = String::new();
    let stdout = child.0.stdout.take().ok_or("stdout is not a pipe")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let port = line.trim().parse().map_err(|_| "a child has found no port")?;
    Ok((child, ([127, 0, 0, 1], port).into()))
}

/// A gateway that somebody else has started: `--target NAME=URL`.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) name: String,
    addr: SocketAddr,
    host: String,
    path: String,
    bearer: Option<String>,
}

impl Foreign {
    pub(crate) fn parse(text: &str) -> Result<Foreign> {
        let usage = || format!("--target {text}: expected NAME=http://HOST[:PORT][/PATH]");
        let (name, url) = text.split_once('=').ok_or_else(usage)?;
        if url.starts_with("https://") {
            return Err(format!("--target {text}: https is not spoken here; give it http").into());
        }
        let rest = url.strip_prefix("http://").filter(|_| !name.is_empty()).ok_or_else(usage)?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let full = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let mut found = full.to_socket_addrs().map_err(|e| format!("--target {text}: {e}"))?;
        let addr = found.next().ok_or_else(usage)?;
        let (name, host, path) = (name.to_owned(), host.to_owned(), path.to_owned());
        Ok(Foreign { name, addr, host, path, bearer: None })
    }

    /// The token of `--bearer NAME=TOKEN`, if it is for this one.
    pub(crate) fn show(&mut self, bearers: &[(String, String)]) {
        let ours = bearers.iter().find(|(name, _)| *name == self.name);
        self.bearer = ours.map(|(_, token)| token.clone());
    }
}

/// What rows are started from.
pub(crate) struct Ground<'a> {
    pub(crate) proxy: &'a Path,
    /// The program of the row `Other`.
    pub(crate) other: Option<&'a Path>,
    pub(crate) backend: &'a Backend,
    pub(crate) scratch: &'a Path,
}

/// A row that runs.
pub(crate) struct Target {
    /// What it is called in tables: its kind, and its workers where it has any.
    pub(crate) label: String,
    /// None for a gateway of somebody else.
    pub(crate) row: Option<Row>,
    pub(crate) workers: usize,
    /// Whose CPU time and memory are this target's; empty where that is unknown.
    pub(crate) pids: Vec<u32>,
    place: Place,
    tools: Vec<String>,
    _child: Option<Running>,
}

impl Target {
    /// Starts a row of a scenario, and waits until calls reach the server.
    pub(crate) fn start(
        row: Row,
        workers: usize,
        scenario: &Scenario,
        ground: &Ground<'_>,
    ) -> Result<Target> {
        let addr = ground.backend.addr;
        let proxy = |behind: Behind, rules: bool| {
            let (more, own) = if rules { (&*scenario.proxy, &*scenario.backend) } else { ("", "") };
            let (era, tools) = (scenario.behind(), scenario.tools);
            let backend = proxy::backend("stub", &behind, era, tools, own)?;
            let file = ground.scratch.join(format!("{}-{row:?}-{workers}.toml", scenario.name));
            let program = ground.other.filter(|_| row == Row::Other).unwrap_or(ground.proxy);
            proxy::start(program, workers, more, &backend, &file)
        };
        let (label, child, addr) = match row {
            Row::Direct => ("direct", None, addr),
            Row::Nginx => {
                let (child, addr) =
                    nginx::start(workers, scenario.connections, addr, ground.scratch)?;
                ("nginx", Some(child), addr)
            }
            Row::Hyper => {
                let (child, addr) = baseline("plain", addr, workers)?;
                ("hyper", Some(child), addr)
            }
            Row::Relay => {
                let (child, addr) = baseline("relay", addr, workers)?;
                ("relay", Some(child), addr)
            }
            Row::Proxy => {
                let (child, addr) = proxy(Behind::Http(addr), true)?;
                ("mcp-proxy", Some(child), addr)
            }
            Row::Plain => {
                let (child, addr) = proxy(Behind::Http(addr), false)?;
                ("mcp-proxy plain", Some(child), addr)
            }
            Row::Stdio => {
                let (child, addr) = proxy(Behind::Stdio, true)?;
                ("mcp-proxy stdio", Some(child), addr)
            }
            Row::Other => {
                let (child, addr) = proxy(Behind::Http(addr), true)?;
                ("mcp-proxy other", Some(child), addr)
            }
        };
        let label = match row {
            Row::Direct => label.to_owned(),
            _ => format!("{label}, {workers}"),
        };
        let place = Place {
            addr,
            host: addr.to_string(),
            path: "/mcp".into(),
            bearer: scenario.bearer.clone(),
        };
        let pids = match &child {
            None => ground.backend.pids(),
            Some(child) => vec![child.pid()],
        };
        let mut target =
            Target { label, row: Some(row), workers, pids, place, tools: vec![], _child: child };
        target.wait_until_ready(scenario.era, 1)?;
        if row == Row::Nginx {
            // The master does nothing.
            target.pids = process::children(target.pids[0]);
            if target.pids.len() != workers {
                return Err(format!("nginx has {} workers", target.pids.len()).into());
            }
        }
        Ok(target)
    }

    /// The row of a gateway that runs already.
    pub(crate) fn foreign(foreign: &Foreign, scenario: &Scenario) -> Result<Target> {
        let Foreign { name, addr, host, path, bearer } = foreign.clone();
        let bearer = bearer.or(scenario.bearer.clone());
        let local = addr.ip().is_loopback();
        let pids = if local { process::listeners(addr.port()) } else { Vec::new() };
        let place = Place { addr, host, path, bearer };
        let mut target =
            Target { label: name, row: None, workers: 1, pids, place, tools: vec![], _child: None };
        target.wait_until_ready(scenario.era, 1)?;
        Ok(target)
    }

    /// mcp-proxy that somebody has started, with several backends.
    pub(crate) fn started(child: Running, addr: SocketAddr, tools: usize) -> Result<Target> {
        let place = Place { addr, host: addr.to_string(), path: "/mcp".into(), bearer: None };
        let mut target = Target {
            label: "mcp-proxy".into(),
            row: Some(Row::Proxy),
            workers: 1,
            pids: vec![child.pid()],
            place,
            tools: vec![],
            _child: Some(child),
        };
        target.wait_until_ready(Era::Session, tools)?;
        Ok(target)
    }

    /// What its clients are told to do.
    pub(crate) fn job(&self, scenario: &Scenario, warmup: Duration, measure: Duration) -> Job {
        Job {
            place: self.place.clone(),
            era: scenario.era,
            connections: scenario.connections,
            sessions: scenario.sessions_each(),
            calls: scenario.calls.iter().filter(|call| call.share > 0).cloned().collect(),
            tools: self.tools.clone(),
            listed: scenario.tools,
            rate: scenario.rate,
            warmup_ms: warmup.as_millis() as u64,
            measure_ms: measure.as_millis() as u64,
            tolerant: false,
        }
    }

    pub(crate) fn tools(&self) -> &[String] {
        &self.tools
    }

    /// Until so many tools called `echo` are listed, behind whatever prefix, and the first one
    /// answers.
    fn wait_until_ready(&mut self, era: Era, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.look(era, count) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("{} does not come up: {error}", self.label).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn look(&mut self, era: Era, count: usize) -> Result<()> {
        let mut line = Line::new(self.place.addr);
        let mut session = None;
        if era == Era::Session {
            let hello = line.ask(&request::whole(&self.place, None, request::INITIALIZE))?;
            session = Some(
                hello
                    .session
                    .ok_or_else(|| format!("initialize: status {}, no session", hello.status))?,
            );
            line.ask(&request::whole(&self.place, session.as_deref(), request::INITIALIZED))?;
        }
        let mut ask = |call: Call, tools: &[String]| -> Result<(Template, Vec<u8>)> {
            let job = Job {
                place: self.place.clone(),
                era,
                connections: 1,
                sessions: 1,
                calls: vec![],
                tools: tools.to_vec(),
                listed: 0,
                rate: None,
                warmup_ms: 0,
                measure_ms: 0,
                tolerant: false,
            };
            let template = Template::new(&job, &call, 0);
            let tag = request::tag(0, 1);
            let mut bytes = Vec::new();
            template.write(session.as_deref(), &tag, &mut bytes);
            let answer = line.ask(&bytes)?;
            template.judge(&tag, &answer).map_err(|(_, text)| text)?;
            Ok((template, answer.body))
        };
        let list = Call { method: Method::List, ..Call::default() };
        let (_, body) = ask(list, &[String::new()])?;
        self.tools = echoes(&body);
        if self.tools.len() < count {
            return Err(format!(
                "{} tools called echo are listed, not {count}; is the stub behind it?",
                self.tools.len()
            )
            .into());
        }
        ask(Call::default(), &self.tools)?;
        if let Some(session) = session {
            line.ask(&request::bare("DELETE", &self.place, &session))?;
        }
        Ok(())
    }
}

/// The tools of a list whose own name is `echo`.
fn echoes(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    // As JSON, or as the last event of a stream.
    let mut events = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let json = events.next_back().unwrap_or(&text);
    let list: Value = serde_json::from_str(json.trim()).unwrap_or_default();
    let tools = list["result"]["tools"].as_array().cloned().unwrap_or_default();
    let names = tools.iter().filter_map(|tool| tool["name"].as_str());
    names.filter(|name| name.ends_with("echo")).map(str::to_owned).collect()
}
