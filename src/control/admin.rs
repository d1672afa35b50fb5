//! Owns: what there is under `/admin`, and what the proxy's own tools say: one table of routes, of
//! which the paths, the 405s and the OpenAPI document are made.
//! Never: who may ask (`exchange::admin`); anything that a worker waits for.
//! Next: `banner`, what people read without asking.
//!
//! To add an endpoint: one row in [`ROUTES`].

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::BackendStatus;
use super::added;
use super::config::ProxyConfig;
use super::crew::Crew;
use super::diagnose::Diagnosis;
use super::reload::{self, Applied, NotApplied, Numbers, Overlay};
use super::scrape::{self, Admitted, Sources, children};
use super::shared::Shared;
use super::watch_file::Watcher;
use super::watching::Watching;
use crate::backend::health::{Board, State};
use crate::middleware::breaker;
use crate::plan::{BackendId, BackendPlan, Plan, TransportPlan};
use crate::telemetry::clock;
use crate::telemetry::desk::{Page, Reply, Wanted};
use crate::telemetry::metrics::{Lost, Metrics};
use crate::telemetry::prometheus::Text;
use crate::world::Counts;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is known here.
pub(super) struct Office<'a> {
    /// In force, with what was added and removed at run time.
    pub(super) config: ProxyConfig,
    /// As it was read.
    pub(super) file: ProxyConfig,
    pub(super) overlay: Overlay,
    /// In force.
    pub(super) plan: Arc<Plan>,
    pub(super) numbers: Numbers,
    /// Backends that leave.
    pub(super) leaving: Vec<(BackendId, Arc<str>)>,
    pub(super) crew: Crew,
    pub(super) watcher: Watcher,
    pub(super) watching: Watching,
    pub(super) board: Arc<Board>,
    pub(super) counts: Arc<Counts>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: &'a Shared,
    pub(super) admitted: Admitted,
}

/// What a request brings.
struct Visit<'v> {
    /// The part of the path that the route leaves open.
    id: &'v str,
    body: &'v [u8],
}

type Serve = fn(&mut Office<'_>, &Visit<'_>) -> Reply;

struct Route {
    method: &'static str,
    /// Behind `/admin/`; `{id}` is one segment of any text.
    path: &'static str,
    summary: &'static str,
    /// Statuses and what they mean.
    answers: &'static [(u16, &'static str)],
    /// Media types of the request, if it has a body, and of the answer.
    media: (Option<&'static str>, &'static str),
    serve: Serve,
}

const JSON: &str = "application/json";
const FOUND: &[(u16, &str)] = &[(200, "What was asked for")];

const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "backends",
        summary: "The proxy and its backends, with their state",
        answers: FOUND,
        media: (None, JSON),
        serve: |office, _| json(200, &office.backends()),
    },
    Route {
        method: "POST",
        path: "backends",
        summary: "Adds a backend over HTTP until the proxy ends: an object with the keys of [[backends]]",
        answers: &[
            (201, "It is accepted, and comes up like any other"),
            (400, "The body is not UTF-8"),
            (409, "There is a backend of that name"),
            (422, "It has faults, or asks for what requests may not"),
        ],
        media: (Some(JSON), JSON),
        serve: |office, visit| office.add(visit.body),
    },
    Route {
        method: "DELETE",
        path: "backends/{id}",
        summary: "Takes a backend out until the proxy ends",
        answers: &[(200, "It has gone; calls under way may end"), (404, "There is none")],
        media: (None, JSON),
        serve: |office, visit| office.remove(visit.id),
    },
    Route {
        method: "GET",
        path: "health",
        summary: "Whether all backends are well",
        answers: FOUND,
        media: (None, JSON),
        serve: |office, _| json(200, &office.health()),
    },
    Route {
        method: "GET",
        path: "metrics",
        summary: "Metrics in the text format of Prometheus",
        answers: &[(200, "What was asked for"), (404, "Metrics are off")],
        media: (None, "text/plain"),
        serve: |office, _| office.metrics(),
    },
    Route {
        method: "GET",
        path: "cache/stats",
        summary: "What the caches of backends did and hold",
        answers: FOUND,
        media: (None, JSON),
        serve: |office, _| json(200, &office.caches()),
    },
    Route {
        method: "POST",
        path: "cache/clear",
        summary: "Empties all caches",
        answers: &[(200, "No call is answered with what they held")],
        media: (None, JSON),
        serve: |office, _| {
            office.board.clear_caches();
            let names: Vec<&str> = office.cached().map(|backend| &*backend.name).collect();
            json(200, &json!({ "cleared": names }))
        },
    },
    Route {
        method: "GET",
        path: "config",
        summary: "The configuration in force, secrets as ***",
        answers: FOUND,
        media: (None, "application/toml"),
        serve: |office, _| {
            let lines = "Content-Type: application/toml\r\nCache-Control: no-store\r\n".to_owned();
            Reply::Page(Page { status: 200, lines, body: office.config.effective().into() })
        },
    },
    Route {
        method: "POST",
        path: "config/validate",
        summary: "Looks for faults in a configuration, which is not used",
        answers: &[(200, "The faults and warnings")],
        media: (Some("application/toml"), JSON),
        serve: |_, visit| validate(visit.body),
    },
    Route {
        method: "POST",
        path: "reload",
        summary: "Reads the files of the configuration again and puts them in force",
        answers: &[(200, "They are in force"), (422, "They have faults: nothing has changed")],
        media: (None, JSON),
        serve: |office, _| match office.reload(reload::Wanted::Again) {
            Ok(applied) => json(200, &told(&applied)),
            Err(why) => not_applied(&why),
        },
    },
    Route {
        method: "GET",
        path: "sessions",
        summary: "The client sessions, the oldest first",
        answers: FOUND,
        media: (None, JSON),
        serve: |_, _| Reply::Sessions,
    },
    Route {
        method: "DELETE",
        path: "sessions/{id}",
        summary: "Ends a client session",
        answers: &[(200, "It has ended"), (404, "There is no such session")],
        media: (None, JSON),
        serve: |_, visit| Reply::EndSession(visit.id.to_owned()),
    },
    Route {
        method: "GET",
        path: "openapi.json",
        summary: "This description",
        answers: FOUND,
        media: (None, JSON),
        serve: |_, _| json(200, &openapi()),
    },
];

fn json(status: u16, value: &Value) -> Reply {
    Reply::Page(Page::json(status, value.to_string()))
}

/// What `path` leaves for `{id}` of a route, if it is the route's path.
fn matches<'p>(route: &Route, path: &'p str) -> Option<&'p str> {
    match route.path.strip_suffix("{id}") {
        None => (path == route.path).then_some(""),
        Some(start) => path.strip_prefix(start).filter(|id| !id.is_empty() && !id.contains('/')),
    }
}

impl Office<'_> {
    /// Answers a question.
    pub(super) fn answer(&mut self, wanted: Wanted) -> Reply {
        match wanted {
            Wanted::Page { method, path, body } => self.page(method, &path, &body),
            Wanted::Tool { name, arguments } => match name {
                "add_backend" => self.add_by_tool(&arguments),
                "list_backends" => Reply::Said(self.backends().to_string()),
                "health_check" => Reply::Said(self.health().to_string()),
                "config" => Reply::Said(json!({ "toml": self.config.effective() }).to_string()),
                _ => Reply::NoTool,
            },
        }
    }

    fn page(&mut self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut allowed = Vec::new();
        for route in ROUTES {
            let Some(id) = matches(route, path) else { continue };
            if route.method == method {
                return (route.serve)(self, &Visit { id, body });
            }
            allowed.push(route.method);
        }
        if allowed.is_empty() {
            return Reply::Page(Page::error(404, "not_found", "there is nothing at this path"));
        }
        let message = format!("accepted: {}", allowed.join(", "));
        let mut page = Page::error(405, "method_not_allowed", &message);
        page.lines.push_str(&format!("Allow: {}\r\n", allowed.join(", ")));
        Reply::Page(page)
    }

    fn backends(&self) -> Value {
        let statuses = self.shared.lock().backends.clone();
        let rows: Vec<Value> = self
            .plan
            .backends
            .iter()
            .map(|backend| {
                self.backend(backend, statuses.iter().find(|status| status.id == backend.id))
            })
            .collect();
        let proxy = json!({
            "name": &*self.plan.name,
            "version": &*self.plan.version,
            "backend_count": self.plan.backends.len(),
            "sessions": self.counts.sessions.load(Ordering::Relaxed),
        });
        json!({ "proxy": proxy, "backends": rows })
    }

    fn backend(&self, backend: &BackendPlan, status: Option<&BackendStatus>) -> Value {
        let (board, id) = (&self.board, backend.id);
        let state = board.state(id);
        let success = board.last_success(id).map(|then| clock::rfc3339(clock::unix(then)));
        let around = &backend.around;
        let breaker = around.breaker.as_ref().map(|breaker| match breaker.state() {
            breaker::State::Closed => "closed",
            breaker::State::HalfOpen => "half-open",
            breaker::State::Open => "open",
        });
        let (transport, connections) = match &backend.transport {
            TransportPlan::Http(_) => ("http", board.in_flight(id) + board.idle_connections(id)),
            TransportPlan::Stdio(_) => ("stdio", children(board, backend)),
        };
        json!({
            "name": &*backend.name,
            "transport": transport,
            "era": success.as_ref().map(|_| board.era(id).as_str()),
            "state": state.as_str(),
            "healthy": state.is_healthy(),
            "last_success": success,
            "last_error": status.and_then(|status| status.detail.as_deref()),
            "tools": board.tools(id),
            "restarts": board.restarts(id),
            "breaker": breaker,
            "ejected": around.outlier.as_ref().is_some_and(|o| o.is_ejected(board.elapsed())),
            "in_flight": board.in_flight(id),
            "connections": connections,
        })
    }

    /// `POST backends`.
    fn add(&mut self, body: &[u8]) -> Reply {
        let Ok(text) = std::str::from_utf8(body) else { return not_text() };
        let outcome = added::read(text).map_err(NotApplied::Faults).and_then(|backend| {
            let name = backend.name().to_owned();
            Ok((name, self.reload(reload::Wanted::Add(Box::new(backend)))?))
        });
        match outcome {
            Ok((name, applied)) => {
                let mut said = told(&applied);
                said["name"] = json!(name);
                json(201, &said)
            }
            Err(why) => not_applied(&why),
        }
    }

    /// The tool `add_backend`, which takes less than the route does.
    fn add_by_tool(&mut self, arguments: &[u8]) -> Reply {
        let parsed: Option<serde_json::Map<String, Value>> = serde_json::from_slice(arguments).ok();
        let Some(arguments) = parsed else {
            return Reply::Declined("accepted: an object with name and url".to_owned());
        };
        if let Some(key) = arguments.keys().find(|key| !matches!(key.as_str(), "name" | "url")) {
            return Reply::Declined(format!("found {key:?}, accepted: name, url"));
        }
        let outcome = added::read(&Value::Object(arguments).to_string())
            .map_err(NotApplied::Faults)
            .and_then(|backend| {
                let name = backend.name().to_owned();
                let applied = self.reload(reload::Wanted::Add(Box::new(backend)))?;
                Ok(json!({ "name": name, "generation": applied.generation }))
            });
        match outcome {
            Ok(said) => Reply::Said(said.to_string()),
            Err(why) => Reply::Declined(why.to_string()),
        }
    }

    /// `DELETE backends/{name}`.
    fn remove(&mut self, name: &str) -> Reply {
        match self.reload(reload::Wanted::Remove(name.to_owned())) {
            Ok(applied) => json(200, &told(&applied)),
            Err(why) => not_applied(&why),
        }
    }

    fn health(&self) -> Value {
        let reloads = self.shared.lock().reloads.clone();
        let is_ill = |backend: &&Arc<BackendPlan>| self.board.state(backend.id) != State::Up;
        let ill: Vec<&str> =
            self.plan.backends.iter().filter(is_ill).map(|backend| &*backend.name).collect();
        let lost: u64 = (0..Lost::NAMES.len()).map(|what| self.metrics.lost(what)).sum();
        // An audit log with gaps is a matter for somebody; spans are a help only.
        let untold = self.metrics.fault(Lost::Line);
        let is_well = ill.is_empty() && untold.is_none();
        json!({
            "status": if is_well { "healthy" } else { "degraded" },
            "unhealthy_backends": ill,
            "config": { "generation": reloads.generation, "last_error": reloads.last_error },
            "telemetry": {
                "lost": lost,
                "last_error": untold.or_else(|| self.metrics.fault(Lost::Span)).as_deref(),
            },
        })
    }

    /// Backends that have a cache.
    fn cached(&self) -> impl Iterator<Item = &Arc<BackendPlan>> {
        self.plan.backends.iter().filter(|backend| backend.caches())
    }

    fn caches(&self) -> Value {
        let row = |backend: &Arc<BackendPlan>| {
            let stats = self.board.cache(backend.id);
            let asked = stats.hits + stats.misses;
            json!({
                "backend": &*backend.name,
                "hits": stats.hits,
                "misses": stats.misses,
                "hit_rate": if asked == 0 { 0.0 } else { stats.hits as f64 / asked as f64 },
                "entry_count": stats.entries,
                "bytes": stats.bytes,
            })
        };
        self.cached().map(row).collect()
    }

    fn metrics(&mut self) -> Reply {
        if !self.metrics.enabled() {
            let message = "observability.metrics.enabled is false";
            return Reply::Page(Page::error(404, "not_found", message));
        }
        let sources = Sources {
            plan: &self.plan,
            board: &self.board,
            counts: &self.counts,
            metrics: &self.metrics,
            reloads: &self.shared.lock().reloads.clone(),
        };
        let body = scrape::page(&sources, &mut self.admitted);
        let lines = format!("Content-Type: {}\r\nCache-Control: no-store\r\n", Text::CONTENT_TYPE);
        Reply::Page(Page { status: 200, lines, body: body.into() })
    }
}

/// What a change of the configuration did.
fn told(applied: &Applied) -> Value {
    json!({
        "generation": applied.generation,
        "added": applied.added,
        "removed": applied.removed,
        "replaced": applied.replaced,
        "changed": applied.changed,
        "needs_restart": applied.needs_restart,
        "warnings": rows(&applied.warnings),
    })
}

/// Why there was no change.
fn not_applied(why: &NotApplied) -> Reply {
    let (status, word) = match why {
        NotApplied::Faults(_) => (422, "invalid"),
        NotApplied::Taken(_) => (409, "conflict"),
        NotApplied::Unknown(_) => (404, "not_found"),
        NotApplied::Failed(_) => (503, "busy"),
    };
    let mut said = json!({ "error": word, "message": why.to_string() });
    if let NotApplied::Faults(report) = why {
        said["faults"] = rows(&report.faults);
        said["warnings"] = rows(&report.warnings);
    }
    json(status, &said)
}

fn not_text() -> Reply {
    Reply::Page(Page::error(400, "bad_body", "the body is not UTF-8"))
}

fn rows(of: &[Diagnosis]) -> Value {
    let row = |diagnosis: &Diagnosis| {
        json!({
            "line": diagnosis.place.line,
            "column": diagnosis.place.column,
            "path": diagnosis.path,
            "message": diagnosis.message,
        })
    };
    of.iter().map(row).collect()
}

/// `POST config/validate`.
fn validate(body: &[u8]) -> Reply {
    let Ok(text) = std::str::from_utf8(body) else { return not_text() };
    let (faults, warnings) = match ProxyConfig::parse(text) {
        Ok(config) => (Vec::new(), config.warnings()),
        Err(report) => (report.faults, report.warnings),
    };
    let verdict = json!({
        "ok": faults.is_empty(),
        "faults": rows(&faults),
        "warnings": rows(&warnings),
    });
    json(200, &verdict)
}

/// The description of all routes (OpenAPI 3.1).
fn openapi() -> Value {
    let error = json!({
        "type": "object",
        "required": ["error", "message"],
        "properties": { "error": { "type": "string" }, "message": { "type": "string" } },
    });
    let mut paths: BTreeMap<String, serde_json::Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let mut responses = serde_json::Map::new();
        let refused = [
            (401, "No token, or a wrong one"),
            (403, "Not an administrator"),
            (503, "The control plane is busy"),
        ];
        for (status, what) in route.answers.iter().chain(&refused) {
            let content = match status {
                200..300 => json!({ route.media.1: {} }),
                _ => json!({ JSON: { "schema": { "$ref": "#/components/schemas/Error" } } }),
            };
            let response = json!({ "description": what, "content": content });
            responses.insert(status.to_string(), response);
        }
        let mut operation = json!({ "summary": route.summary, "responses": responses });
        if let Some(media) = route.media.0 {
            operation["requestBody"] = json!({ "required": true, "content": { media: {} } });
        }
        if route.path.contains("{id}") {
            operation["parameters"] = json!([
                { "name": "id", "in": "path", "required": true, "schema": { "type": "string" } },
            ]);
        }
        let path = paths.entry(format!("/admin/{}", route.path)).or_default();
        path.insert(route.method.to_ascii_lowercase(), operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": { "Error": error } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let route = |path: &str| ROUTES.iter().find(|route| route.path == path).unwrap();
        assert_eq!(matches(route("backends"), "backends"), Some(""));
        assert_eq!(matches(route("backends"), "backends/"), None);
        assert_eq!(matches(route("sessions/{id}"), "sessions/ab"), Some("ab"));
        for none in ["sessions/", "sessions", "sessions/a/b"] {
            assert_eq!(matches(route("sessions/{id}"), none), None, "{none}");
        }
    }

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let description = openapi();
        let paths = description["paths"].as_object().unwrap();
        let operations: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(operations, ROUTES.len());
        for route in ROUTES {
            let operation = &paths[&format!("/admin/{}", route.path)]
                [route.method.to_ascii_lowercase().as_str()];
            assert_eq!(operation["summary"], route.summary);
        }
    }
}
