//! Owns: what `[observability]` means: compiled for workers, and the threads that write and send.
//! Never: what is counted or told (`telemetry`).
//! Next: `scrape`, what is read of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use tracing_subscriber::EnvFilter;

use super::compile::{Compiler, TlsFiles, Url, is_token, refused_header};
use super::config::{ProxyConfig, TlsTable};
use super::diagnose::Report;
use super::setting::{AdminToolsKey, join};
use crate::limits;
use crate::mcp::method::Method;
use crate::plan::{AdminTools, AuditPlan, Plan, WatchPlan, WorkerId};
use crate::rt::outlet::{Outlet, outlets};
use crate::telemetry::Kit;
use crate::telemetry::desk::{Desk, Question};
use crate::telemetry::export::Collector;
use crate::telemetry::lines::{Line, Orders, Place, Writer};
use crate::telemetry::metrics::{Meter, Metrics};
use crate::telemetry::otlp::Source;
use crate::telemetry::trace::Report as TraceReport;

impl Compiler<'_> {
    /// `[observability]`.
    pub(super) fn watch(&mut self) -> WatchPlan {
        let config = self.config;
        let table = &config.observability;
        if EnvFilter::try_new(&table.log_level).is_err() {
            let message = format!(
                "found {:?}, accepted: error, warn, info, debug, trace, off, or directives such \
                 as \"info,mcp_proxy=debug\"",
                table.log_level
            );
            self.fault("observability.log_level", message);
        }
        if let Some(service) = &table.tracing.service_name {
            self.text("observability.tracing.service_name", service);
        }
        self.collector();
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
    lines: Option<Vec<Outlet<Line>>>,
    spans: Option<Vec<Outlet<Box<TraceReport>>>>,
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
    ) -> Result<Watching, String> {
        let watch = &plan.watch;
        let names = plan.backends.iter().map(|backend| backend.name.clone()).collect();
        let mut watching = Watching {
            metrics: Metrics::new(watch.metrics, plan.workers, names, Method::NAMES),
            orders: orders.clone(),
            lines: None,
            spans: None,
            threads: Vec::new(),
        };
        if watch.audit.is_some() || watch.access_log {
            let audit = watch.audit.as_ref().and_then(|audit| audit.path.clone());
            let audit = audit.map_or(Place::Stderr, Place::File);
            let writer = Writer::open(audit, Place::Stderr)?;
            let (put, basin) = outlets(plan.workers, limits::LINES_LEN, limits::LINES_BYTES_MAX);
            watching.lines = Some(put);
            let (orders, metrics) = (orders.clone(), watching.metrics.clone());
            watching.spawn("mcp-log", move || writer.run(basin, &orders, &metrics))?;
        }
        if watch.trace_ratio.is_some() {
            let mut report = Report::default();
            let collector = Compiler { config, report: &mut report }.collector();
            let collector = collector.ok_or_else(|| report.to_string())?;
            let weight = limits::SPANS_LEN * 8;
            let (put, basin) = outlets(plan.workers, limits::SPANS_LEN, weight);
            watching.spans = Some(put);
            let (orders, metrics) = (orders.clone(), watching.metrics.clone());
            watching.spawn("mcp-spans", move || collector.run(basin, &orders.end, &metrics))?;
        }
        Ok(watching)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
        Ok(())
    }

    /// What the workers are given, in their order; `ask` takes a question to the control thread.
    pub(super) fn kits(
        &mut self,
        workers: usize,
        ask: &Arc<dyn Fn(Question) -> Result<(), Question> + Send + Sync>,
    ) -> Vec<Kit> {
        let mut lines = self.lines.take().unwrap_or_default().into_iter();
        let mut spans = self.spans.take().unwrap_or_default().into_iter();
        let kit = |me: WorkerId| {
            let ask = ask.clone();
            Kit {
                meter: Meter::new(&self.metrics, me),
                lines: lines.next(),
                spans: spans.next(),
                desk: Desk::new(Box::new(move |question| ask(question))),
            }
        };
        (0..workers).map(kit).collect()
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
