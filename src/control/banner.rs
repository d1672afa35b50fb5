//! Owns: what people read on standard output: the greeting, the backends, the summary of a check.
//! Never: the log, which goes to standard error.
//! Next: `notify`, and a service manager.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::BackendStatus;
use super::config::ProxyConfig;
use super::setting::Transport;
use crate::backend::health::State;
use crate::plan::{BackendPlan, TransportPlan};

/// A backend of which nothing has been heard yet.
pub(super) fn starting(backend: &BackendPlan) -> BackendStatus {
    BackendStatus {
        id: backend.id,
        name: backend.name.to_string(),
        transport: match &backend.transport {
            TransportPlan::Stdio(_) => "stdio",
            TransportPlan::Http(plan) if plan.sse.only => "sse",
            TransportPlan::Http(_) => "http",
        },
        state: State::Starting,
        tools: 0,
        detail: None,
    }
}

/// The first line: the URL, and where to add it.
pub fn greeting(name: &str, url: &str) -> String {
    let name = client_name(name);
    let quoted = serde_json::json!({ "mcpServers": { &name: { "type": "http", "url": url } } });
    format!(
        "{} {} serves {url}\n\n\
         Add it to a client:\n  claude mcp add --transport http {name} {url}\n  {quoted}\n",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
    )
}

/// The backends, a line each.
pub fn status(backends: &[BackendStatus]) -> String {
    let width = backends.iter().map(|b| b.name.len()).max().unwrap_or(0);
    let mut out = String::from("\nBackends:\n");
    for backend in backends {
        let _ =
            write!(out, "  {:width$}  {:5}  {}", backend.name, backend.transport, backend.state);
        let _ = match (&backend.detail, backend.state) {
            (_, State::Up) => writeln!(out, ", {}", tools(backend.tools)),
            (Some(detail), _) => writeln!(out, ": {}", one_line(detail)),
            (None, _) => writeln!(out),
        };
    }
    if backends.is_empty() {
        out.push_str("  none\n");
    }
    out
}

/// All of it in one line, for a service manager.
pub fn standing(url: &str, backends: &[BackendStatus]) -> String {
    let up = backends.iter().filter(|backend| backend.state == State::Up).count();
    format!("serving at {url}, {up} of {} backends up", backends.len())
}

/// What `--check` says of a configuration without faults.
pub fn summary(file: &str, config: &ProxyConfig) -> String {
    let listen = &config.proxy.listen;
    let enabled = config.backends.iter().filter(|b| b.table.enabled).count();
    let mut out = format!("{file}: no faults\n");
    let _ = writeln!(out, "  name      {}", one_line(&config.proxy.name));
    let _ = writeln!(out, "  listens   {} port {}", listen.host, listen.port.0);
    let _ = writeln!(out, "  backends  {enabled} of {} enabled", config.backends.len());
    for backend in &config.backends {
        let table = &backend.table;
        let transport = match table.transport {
            Transport::Stdio => "stdio",
            Transport::Http => "http",
            Transport::Sse => "sse",
        };
        let prefix = table.prefix.as_deref().unwrap_or(&table.name);
        let prefix = match (table.role(), prefix) {
            (Some((role, name)), _) => format!("{} {name}", role.key()),
            (None, "") => "own names".to_owned(),
            (None, prefix) => format!("{prefix}{}*", config.proxy.separator),
        };
        let state = if table.enabled { "" } else { " (disabled)" };
        let _ = writeln!(out, "    {}  {transport}  {prefix}{state}", table.name);
    }
    out
}

/// `1 tool`, `2 tools`.
pub(super) fn tools(count: u32) -> String {
    format!("{count} tool{}", if count == 1 { "" } else { "s" })
}

/// Where a client on this machine connects.
pub(super) fn url(addr: SocketAddr, tls: bool) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}/mcp", SocketAddr::new(ip, addr.port()))
}

/// The proxy's name as an argument that no shell splits.
fn client_name(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '-' };
    let name: String = name.chars().map(keep).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { env!("CARGO_PKG_NAME").to_owned() } else { name.to_owned() }
}

/// Text of others, without what could write elsewhere on a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_can_be_pasted() {
        let text = greeting("my proxy; rm -rf", &url("0.0.0.0:80".parse().unwrap(), false));
        assert!(text.starts_with("mcp-proxy "), "{text}");
        let command = "claude mcp add --transport http my-proxy--rm--rf http://127.0.0.1:80/mcp\n";
        assert!(text.contains(command), "{text}");
        let json = text.lines().last().unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let server = &json["mcpServers"]["my-proxy--rm--rf"];
        assert_eq!(server["url"], "http://127.0.0.1:80/mcp");
        assert_eq!(server["type"], "http");
        let text = greeting("ä", &url("[::1]:80".parse().unwrap(), true));
        assert!(text.contains("http mcp-proxy https://[::1]:80/mcp"), "{text}");
    }

    #[test]
    fn a_summary_without_secrets() {
        let text = "[proxy]\nname='p'\n[[backends]]\nname='a'\ntransport='http'\n\
                    url='http://h/?key=s3cret'\nbearer_token='s3cret'\n\
                    [[backends]]\nname='b'\nprefix=''\nenabled=false\ntransport='stdio'\n\
                    command='true'\n";
        let text = summary("f.toml", &ProxyConfig::parse(text).unwrap());
        let expected = "f.toml: no faults\n  name      p\n  listens   127.0.0.1 port 8080\n  \
                        backends  1 of 2 enabled\n    a  http  a__*\n    b  stdio  own names \
                        (disabled)\n";
        assert_eq!(text, expected);
    }
}
