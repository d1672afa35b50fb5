//! Owns: what `[observability]` means: compiled for workers, and the threads that write and send.
//! Never: what is counted or told (`telemetry`).
//! Next: `jwks`, another one, for keys.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use super::compile::{Compiler, TlsFiles, Url, is_token, refused_header};
use super::config::{ProxyConfig, TlsTable, TracingTable};
use super::diagnose::Report;
use super::log_level;
use super::setting::{AdminToolsKey, join};
use crate::limits;
use crate::mcp::method::Method;
use crate::plan::{AdminTools, AuditPlan, Plan, WatchPlan, WorkerId};
use crate::rt::outlet::{Outlet, outlets};
use crate::telemetry::desk::{Desk, Question};
use crate::telemetry::export::Collector;
use crate::telemetry::lines::{Line, Orders, Place, Writer};
use crate::telemetry::metrics::{Meter, Metrics};
use crate::telemetry::otlp::Source;
use crate::telemetry::trace::Report as TraceReport;
use crate::telemetry::{Kit, Switch};

impl Compiler<'_> {
    /// `[observability]`.
    pub(super) fn watch(&mut self) -> WatchPlan {
        let config = self.config;
        let table = &config.observability;
        if let Err(message) = log_level::check(&table.log_level) {
            self.fault("observability.log_level", message);
        }
        if let Some(service) = &table.tracing.service_name {
            self.text("observability.tracing.service_name", service);
        }
        self.collector();
        let audit = table.audit.path.as_ref().filter(|_| table.audit.enabled);
        if let Some(path) = audit
            && path.is_dir()
        {
            let message = format!("{} is a directory, accepted: a file", path.display());
            self.fault("observability.audit.path", message);
        }
        WatchPlan {
            metrics: table.metrics.enabled,
            audit: table.audit.enabled.then(|| AuditPlan {
                path: table.audit.path.clone(),
                arguments: table.audit.include_arguments,
            }),
            access_log: table.access_log.enabled,
            trace_ratio: table.tracing.enabled.then_some(table.tracing.sample_ratio.0),
            admin_tools: match config.proxy.admin_tools {
                AdminToolsKey::Off => AdminTools::Off,
                AdminToolsKey::Read => AdminTools::Read,
                AdminToolsKey::Full => AdminTools::Full,
            },
        }
    }

    /// `[observability.tracing]`: where spans go.
    pub(super) fn collector(&mut self) -> Option<Collector> {
        let config = self.config;
        let table = &config.observability.tracing;
        let path = "observability.tracing.endpoint";
        let mut lines = String::new();
        for (name, value) in &table.headers {
            let path = join("observability.tracing.headers", name);
            let lower = name.to_ascii_lowercase();
            let value = value.expose();
            let alien = refused_header(&lower);
            if name.is_empty() || !name.bytes().all(is_token) || alien.is_some() {
                self.key_fault(&path, "not accepted: no header, or one of the connection's own");
            } else if value.bytes().any(|b| !matches!(b, b' '..=b'~' | b'\t')) {
                self.fault(&path, "found a line break or a character that is not ASCII");
            }
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        let url = match Url::parse(&table.endpoint) {
            Ok(url) => url,
            Err(reason) => {
                self.fault(path, format!("{reason}, accepted: http[s]://host[:port]"));
                return None;
            }
        };
        let tls = match url.https && table.enabled {
            false => None,
            true => match TlsFiles::read(&TlsTable::default(), Path::new(""))
                .and_then(|files| files.client())
            {
                Ok(client) => Some(client),
                Err((_, message)) => {
                    self.fault(path, message);
                    return None;
                }
            },
        };
        let base = url.target.trim_end_matches('/');
        let target = match base.ends_with("/v1/traces") {
            true => base.to_owned(),
            false => format!("{base}/v1/traces"),
        };
        Some(Collector {
            authority: url.authority(),
            host: url.host,
            port: url.port,
            target,
            header_lines: lines,
            tls,
            source: Source {
                name: table.service_name.clone().unwrap_or_else(|| config.proxy.name.clone()),
                version: config.proxy.version.clone(),
            },
        })
    }
}

/// The threads that carry lines and spans away, and what workers need to feed them.
pub(super) struct Watching {
    pub(super) metrics: Arc<Metrics>,
    orders: Arc<Orders>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Watching {
    /// Opens files and starts threads, as far as the plan wants any.
    ///
    /// # Errors
    /// What to tell the user.
    pub(super) fn start(
        plan: &Plan,
        config: &ProxyConfig,
        orders: &Arc<Orders>,
    ) -> Result<(Watching, Vec<Switch>), String> {
        let names = plan.backends.iter().map(|backend| backend.name.clone()).collect();
        let mut watching = Watching {
            metrics: Metrics::new(plan.watch.metrics, plan.workers, names, Method::NAMES),
            orders: orders.clone(),
            threads: Vec::new(),
        };
        let lines = watching.lines(plan)?;
        let spans = watching.spans(plan, config)?;
        Ok((watching, switches(plan.workers, Some(lines), Some(spans))))
    }

    /// Another configuration is to be in force: what has changed gets files and threads of its own;
    /// those of before end with the last exchange that goes by them.
    ///
    /// # Errors
    /// What to tell the user; nothing has changed then.
    pub(super) fn follow(
        &mut self,
        (old_plan, old): (&Plan, &ProxyConfig),
        (plan, config): (&Plan, &ProxyConfig),
    ) -> Result<Vec<Switch>, String> {
        self.threads.retain(|thread| !thread.is_finished());
        let files = |plan: &Plan| {
            let audit = plan.watch.audit.as_ref();
            (audit.map(|audit| audit.path.clone()), plan.watch.access_log)
        };
        let lines = match files(old_plan) == files(plan) {
            true => None,
            false => Some(self.lines(plan)?),
        };
        let told = |config: &ProxyConfig| {
            let mut table = config.observability.tracing.clone();
            // That is the plan's, and needs no other thread.
            table.sample_ratio = TracingTable::default().sample_ratio;
            (table, config.proxy.name.clone(), config.proxy.version.clone())
        };
        let spans = match told(old) == told(config) {
            true => None,
            false => Some(self.spans(plan, config)?),
        };
        Ok(switches(plan.workers, lines, spans))
    }

    /// Outlets for the lines of every worker, and the thread that writes them.
    fn lines(&mut self, plan: &Plan) -> Result<Vec<Outlet<Line>>, String> {
        let watch = &plan.watch;
        let mut lines = Vec::new();
        if watch.audit.is_some() || watch.access_log {
            let audit = watch.audit.as_ref().and_then(|audit| audit.path.clone());
            let audit = audit.map_or(Place::Stderr, Place::File);
            let writer = Writer::open(audit, Place::Stderr)?;
            let (put, basin) = outlets(plan.workers, limits::LINES_LEN, limits::LINES_BYTES_MAX);
            lines = put;
            let (orders, metrics) = (self.orders.clone(), self.metrics.clone());
            self.spawn("mcp-log", move || writer.run(basin, &orders, &metrics))?;
        }
        Ok(lines)
    }

    /// The same for spans.
    fn spans(
        &mut self,
        plan: &Plan,
        config: &ProxyConfig,
    ) -> Result<Vec<Outlet<Box<TraceReport>>>, String> {
        let mut spans = Vec::new();
        if plan.watch.trace_ratio.is_some() {
            let mut report = Report::default();
            let collector = Compiler { config, report: &mut report }.collector();
            let collector = collector.ok_or_else(|| report.to_string())?;
            let weight = limits::SPANS_LEN * 8;
            let (put, basin) = outlets(plan.workers, limits::SPANS_LEN, weight);
            spans = put;
            let (orders, metrics) = (self.orders.clone(), self.metrics.clone());
            self.spawn("mcp-spans", move || collector.run(basin, &orders.end, &metrics))?;
        }
        Ok(spans)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
        Ok(())
    }

    /// What the workers are given, in their order; `ask` takes a question to the control thread.
    pub(super) fn kits(
        &self,
        outlets: Vec<Switch>,
        ask: &Arc<dyn Fn(Question) -> Result<(), Question> + Send + Sync>,
    ) -> Vec<Kit> {
        let kit = |(me, outlets): (WorkerId, Switch)| {
            let ask = ask.clone();
            let desk = Desk::new(Box::new(move |question| ask(question)));
            Kit { meter: Meter::new(&self.metrics, me), desk, outlets }
        };
        outlets.into_iter().enumerate().map(kit).collect()
    }

    /// Lets the threads carry away what there is, for a while.
    pub(super) fn end(self) {
        self.orders.end.store(true, Ordering::Release);
        let by = Instant::now() + limits::TELEMETRY_END;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < by {
                std::thread::sleep(limits::LINES_TICK / 5);
            }
        }
    }
}

/// What every worker is told of its outlets; none for nobody = nothing goes out.
fn switches(
    workers: usize,
    lines: Option<Vec<Outlet<Line>>>,
    spans: Option<Vec<Outlet<Box<TraceReport>>>>,
) -> Vec<Switch> {
    let mut lines = lines.map(Vec::into_iter);
    let mut spans = spans.map(Vec::into_iter);
    let own = |_| Switch {
        lines: lines.as_mut().map(Iterator::next),
        spans: spans.as_mut().map(Iterator::next),
    };
    (0..workers).map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::super::compile::compile;
    use super::*;

    fn faults(lines: &str) -> String {
        let text = format!("[proxy]\nname='p'\n[observability]\n{lines}\n");
        ProxyConfig::parse(&text).map(|_| String::new()).unwrap_or_else(|report| report.to_string())
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (lines, part) in [
            ("log_level='x=y=z'", "observability.log_level: found"),
            ("log_level='wran'", "did you mean \"warn\"?"),
            ("audit=1", "accepted: true, false, or a table"),
            ("audit={path='a', x=1}", "observability.audit.x: unknown key"),
            ("tracing.endpoint='localhost'", "observability.tracing.endpoint: found no scheme"),
            ("tracing.sample_ratio=1.5", "a number from 0 to 1"),
            ("tracing.headers={Host='x'}", "observability.tracing.headers.Host: not accepted"),
            ("tracing.headers={X=\"a\\nb\"}", "line break"),
            ("tracing.service_name=''", "service_name: found an empty string"),
        ] {
            assert!(faults(lines).contains(part), "{lines}: {}", faults(lines));
        }
    }

    #[test]
    fn where_spans_go() {
        for (endpoint, port, target) in [
            ("http://localhost:4318", 4318, "/v1/traces"),
            ("http://h/", 80, "/v1/traces"),
            ("http://h/base/", 80, "/base/v1/traces"),
            ("http://h/v1/traces", 80, "/v1/traces"),
        ] {
            let text = format!(
                "[proxy]\nname='p'\n[observability.tracing]\nenabled=true\nendpoint='{endpoint}'\n"
            );
            let config = ProxyConfig::parse(&text).unwrap();
            let mut report = Report::default();
            let collector = Compiler { config: &config, report: &mut report }.collector().unwrap();
            assert_eq!((collector.port, &*collector.target), (port, target), "{endpoint}");
            assert_eq!(collector.source.name, "p");
            assert_eq!(compile(&config, &mut report).unwrap().watch.trace_ratio, Some(1.0));
        }
    }
}
