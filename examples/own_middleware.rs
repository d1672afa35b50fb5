//! A gateway with rules of its own: `cargo run --example own_middleware [proxy.toml]`.
//!
//! - Tools whose names begin with `delete` are refused, whoever asks.
//! - Every call is told who asked: the argument `requested_by` is the principal.
//! - What looks like a key in an answer does not leave the house.
//! - How many calls are under way is counted over all workers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mcp_proxy::middleware::custom::{Call, Ending, Middleware, Refusal, Target, Verdict};
use mcp_proxy::{Options, Proxy, ProxyConfig};
use serde_json::{Map, Value};

/// Each worker has a clone: what is behind the `Arc` is common to all, the rest each one's own.
#[derive(Clone, Default)]
struct House {
    under_way: Arc<AtomicUsize>,
    /// Calls that this worker has refused.
    refused: u64,
}

impl Middleware for House {
    /// The answer is looked at only where it comes from a tool.
    type Memory = Target;

    const RESPONSES: bool = true;

    fn request(&mut self, call: &mut Call<'_>) -> Verdict<Target> {
        let is_tool = call.target() == Target::Tool;
        if is_tool && call.own_name().starts_with("delete") {
            self.refused += 1;
            let text = format!("{} is not for clients of this gateway", call.called());
            return Verdict::Refuse(Refusal::new(-32050, text));
        }
        if is_tool {
            let arguments = call.arguments().unwrap_or(b"{}");
            let parsed: Option<Map<String, Value>> = serde_json::from_slice(arguments).ok();
            if let Some(mut arguments) = parsed {
                arguments.insert("requested_by".to_owned(), call.principal().into());
                let text = Value::from(arguments).to_string();
                if let Err(fault) = call.set_arguments(text.as_bytes()) {
                    return Verdict::Refuse(Refusal::new(-32603, fault.to_string()));
                }
            }
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Verdict::Pass(call.target())
    }

    fn response(&mut self, target: Target, ending: Ending<'_>) {
        // However it ended: also if the client left.
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let (Ending::Response(response), Target::Tool | Target::TaskResult) = (ending, target)
        else {
            return;
        };
        let Some(result) = response.result() else { return };
        if !result.windows(3).any(|bytes| bytes == b"sk-") {
            return;
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(result) else { return };
        redact(&mut value);
        if let Err(fault) = response.set_result(value.to_string().as_bytes()) {
            response.set_error(&Refusal::new(-32603, fault.to_string()));
        }
    }
}

/// Every word that begins with `sk-` becomes `***`.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => {
            let words = text.split(' ').map(|w| if w.starts_with("sk-") { "***" } else { w });
            *text = words.collect::<Vec<_>>().join(" ");
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::Object(members) => members.values_mut().for_each(redact),
        _ => {}
    }
}

fn main() -> ExitCode {
    let file = std::env::args_os().nth(1).map_or_else(|| "proxy.toml".into(), PathBuf::from);
    let house = House::default();
    let served = ProxyConfig::load(&file).map_err(|faults| faults.to_string()).and_then(|config| {
        let proxy = Proxy::start_with_middleware(config, Options::default(), house)
            .map_err(|error| error.to_string())?;
        let handle = proxy.handle();
        println!("serving at {}", handle.url());
        handle.wait().map_err(|error| error.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
