//! Owns: the way from a backend's rules in the configuration to the compiled chain of its plan.
//! Never: what a rule does (`middleware`).
//! Next: `roles`.

use std::time::Duration;

use super::compile::{Compiler, workers};
use super::config::{NamedBackend, RateTable, RetryTable};
use super::setting::{Args, Glob, IsolationKey, PerKey, ScopeKey, Share};
use crate::limits;
use crate::middleware::Chain;
use crate::middleware::alias::Alias;
use crate::middleware::around::Around;
use crate::middleware::breaker::{self, Breaker};
use crate::middleware::concurrency::Concurrency;
use crate::middleware::filter::{Filter, Rule};
use crate::middleware::hedge::Hedge;
use crate::middleware::inject::Inject;
use crate::middleware::outlier::{self, Outlier};
use crate::middleware::params::{Override, Params};
use crate::middleware::pattern::Patterns;
use crate::middleware::rate::RateLimit;
use crate::middleware::retry::{Budget, Retry};
use crate::middleware::reuse::{Cache, Coalesce, Reuse};
use crate::middleware::validation::SizeLimit;

impl Compiler<'_> {
    /// The rules of one backend.
    pub(super) fn chain(&mut self, backend: &NamedBackend, id: usize) -> Chain {
        let max = self.config.security.max_argument_size;
        Chain {
            alias: self.alias(backend),
            filter: self.filter(backend),
            validation: max.map(|max| SizeLimit(max.0 as usize)),
            params: self.params(backend),
            reuse: self.reuse(backend, id),
            // Known when all backends are.
            mirror: None,
            inject: self.inject(backend),
        }
    }

    /// What stands around the calls of one backend.
    pub(super) fn around(&mut self, backend: &NamedBackend) -> Around {
        let table = &backend.table;
        let workers = workers(self.config);
        let timeout = &table.timeout;
        let total = timeout.total_seconds.map(|total| total.0);
        if let Some(total) = total {
            let longest = timeout.tools.values().copied().chain(timeout.seconds).map(|t| t.0).max();
            if longest.is_some_and(|longest| longest > total) {
                let path = format!("{}.timeout.total_seconds", backend.path);
                self.warning(&path, "shorter than the time of one attempt, which it cuts");
            }
        }
        let none = Vec::new();
        let retried = table.retry.as_ref().map_or(&none, |retry| &retry.tools);
        let hedged = table.hedging.as_ref().map_or(&none, |hedging| &hedging.tools);
        for (key, globs, does) in [
            ("retry", retried, "repeats every tool whose outcome is unknown"),
            ("hedging", hedged, "sends calls of every tool twice"),
        ] {
            for index in (0..globs.len()).filter(|index| globs[*index].0.is_all()) {
                let path = format!("{}.{key}.tools[{index}]", backend.path);
                self.warning(&path, format!("\"*\" {does}, also of those that write"));
            }
        }
        Around {
            // Known when all backends are.
            route: None,
            total,
            retry: table.retry.as_ref().map(retry),
            hedge: table.hedging.as_ref().map(|table| Hedge {
                delay: Duration::from_millis(table.delay_ms.0),
                max_hedges: table.max_hedges.0 as u32,
                tools: patterns(&table.tools),
            }),
            concurrency: table.concurrency.as_ref().map(|table| {
                let (max, queue) = (table.max_concurrent.0 as usize, table.queue.0 as usize);
                Concurrency::new(max, queue, table.queue_timeout_seconds.0, workers)
            }),
            rate: table
                .rate_limit
                .as_ref()
                .map(|table| self.rate(&format!("{}.rate_limit", backend.path), table)),
            tool_timeouts: timeout.tools.iter().map(|(tool, t)| (tool.clone(), t.0)).collect(),
            progress_resets: timeout.progress_resets,
            breaker: table.circuit_breaker.as_ref().map(|table| {
                let settings = breaker::Settings {
                    failure_rate: table.failure_rate_threshold.0,
                    minimum_calls: table.minimum_calls.0 as usize,
                    wait: table.wait_duration_seconds.0,
                    permitted: table.permitted_calls_in_half_open.0 as u32,
                    window: match table.window_seconds {
                        Some(time) => breaker::Span::Time(time.0),
                        None => breaker::Span::Calls(table.window.0 as usize),
                    },
                };
                let path = |key: &str| format!("{}.circuit_breaker.{key}", backend.path);
                if table.window_seconds.is_some() && self.config.spots.has(&path("window")) {
                    let message = "not accepted together with window";
                    self.key_fault(&path("window_seconds"), message);
                } else if let breaker::Span::Calls(calls) = settings.window
                    && settings.minimum_calls > calls
                {
                    let message = "more than window, so it could never open";
                    self.fault(&path("minimum_calls"), message);
                }
                Breaker::new(settings, workers)
            }),
            outlier: table.outlier_detection.as_ref().filter(|_| table.enabled).map(|table| {
                let settings = outlier::Settings {
                    consecutive_errors: table.consecutive_errors.0 as u32,
                    base: table.base_ejection_seconds.0,
                    interval: table.interval_seconds.0,
                    max_percent: table.max_ejection_percent.0 as u32,
                };
                Outlier::new(settings)
            }),
        }
    }

    /// A rate limit, of a backend or of all.
    pub(super) fn rate(&mut self, path: &str, table: &RateTable) -> RateLimit {
        let (requests, period) = (table.requests.0 as usize, table.period_seconds.0);
        if table.per == PerKey::All {
            return RateLimit::new(requests, period);
        }
        if requests > limits::RATE_CALLER_REQUESTS_MAX {
            let max = limits::RATE_CALLER_REQUESTS_MAX;
            let message =
                format!("found {requests}, accepted with per = \"principal\": 1 to {max}");
            self.fault(&format!("{path}.requests"), message);
        }
        if self.config.auth.is_none() {
            let message = "without [auth] all callers are one";
            self.warning(&format!("{path}.per"), message);
        }
        RateLimit::per_principal(requests.min(limits::RATE_CALLER_REQUESTS_MAX), period)
    }

    /// `[performance]`, as far as it is not a backend's.
    pub(super) fn performance(&mut self) {
        let table = &self.config.performance;
        if !table.coalesce_requests && !table.coalesce_tools.is_empty() {
            let message = "has no effect without coalesce_requests = true";
            self.warning("performance.coalesce_tools", message);
        }
        for index in (0..table.coalesce_tools.len()).filter(|i| table.coalesce_tools[*i].0.is_all())
        {
            let message = "\"*\" runs identical calls of every tool once, also of those that write";
            self.warning(&format!("performance.coalesce_tools[{index}]"), message);
        }
    }

    /// Which answers serve more than one call. `id` is what the backend's is to be in the plan.
    fn reuse(&mut self, backend: &NamedBackend, id: usize) -> Option<Reuse> {
        let table = &self.config.performance;
        let coalesce =
            table.coalesce_requests.then(|| Coalesce { tools: patterns(&table.coalesce_tools) });
        let path = |key: &str| format!("{}.{key}", backend.path);
        let mut cache = None;
        if let Some(table) = &backend.table.cache {
            let (tool_ttl, resource_ttl) = (table.tool_ttl_seconds, table.resource_ttl_seconds);
            if tool_ttl.is_none() && resource_ttl.is_none() {
                let message = "keeps nothing without tool_ttl_seconds or resource_ttl_seconds";
                self.warning(&path("cache"), message);
            } else if self.config.spots.has(&path("isolation")) {
                let message = match backend.table.isolation {
                    Some(IsolationKey::Shared) => {
                        "all clients share one session of this backend: what one of them does in it \
                         can show in an answer that is then kept for the others"
                    }
                    _ => {
                        "each session has a state of its own at this backend, but an answer that one \
                         of them got is given to others of the same caller"
                    }
                };
                self.warning(&path("cache"), message);
            }
            if table.scope == ScopeKey::Shared {
                let message = "answers that one caller got are given to all";
                self.warning(&path("cache.scope"), message);
            }
            cache = Some(Cache {
                tool_ttl: tool_ttl.map(|ttl| ttl.0),
                resource_ttl: resource_ttl.map(|ttl| ttl.0),
                max_entries: table.max_entries.0 as usize,
                max_bytes: table.max_bytes.0,
                tools: patterns(&table.tools),
                shared: table.scope == ScopeKey::Shared,
            });
        }
        let idle = |cache: &Cache| cache.tool_ttl.is_none() && cache.resource_ttl.is_none();
        let cache = cache.filter(|cache| !idle(cache));
        (cache.is_some() || coalesce.is_some()).then_some(Reuse { backend: id, cache, coalesce })
    }

    fn alias(&mut self, backend: &NamedBackend) -> Option<Alias> {
        let mut alias = Alias::default();
        for (index, table) in backend.table.aliases.iter().enumerate() {
            let path = format!("{}.aliases[{index}]", backend.path);
            for (key, name) in [("from", &table.from), ("to", &table.to)] {
                if name.is_empty() {
                    self.fault(&format!("{path}.{key}"), "found an empty string, accepted: a name");
                }
            }
            if table.from == table.to {
                self.fault(&format!("{path}.to"), "the same as from, accepted: another name");
            } else if let Err(name) = alias.add(&table.from, &table.to) {
                let key = if name == table.from { "from" } else { "to" };
                let message = format!("{name:?} stands in another alias of this backend already");
                self.fault(&format!("{path}.{key}"), message);
            }
        }
        (alias != Alias::default()).then_some(alias)
    }

    fn filter(&mut self, backend: &NamedBackend) -> Option<Filter> {
        let table = &backend.table;
        let filter = Filter {
            tools: self.rule(backend, "tools", &table.expose_tools, &table.hide_tools),
            resources: self.rule(
                backend,
                "resources",
                &table.expose_resources,
                &table.hide_resources,
            ),
            prompts: self.rule(backend, "prompts", &table.expose_prompts, &table.hide_prompts),
            hide_destructive: table.hide_destructive,
            read_only_only: table.read_only_only,
        };
        (!filter.is_empty()).then_some(filter)
    }

    fn rule(
        &mut self,
        backend: &NamedBackend,
        kind: &str,
        expose: &Option<Vec<Glob>>,
        hide: &Option<Vec<Glob>>,
    ) -> Rule {
        match (expose, hide) {
            (None, None) => Rule::All,
            (Some(expose), None) => Rule::Expose(patterns(expose)),
            (None, Some(hide)) => Rule::Hide(patterns(hide)),
            (Some(_), Some(_)) => {
                let path = format!("{}.hide_{kind}", backend.path);
                self.key_fault(&path, format!("not accepted together with expose_{kind}"));
                Rule::All
            }
        }
    }

    fn params(&mut self, backend: &NamedBackend) -> Option<Params> {
        let mut params = Params::default();
        for (index, table) in backend.table.param_overrides.iter().enumerate() {
            let path = format!("{}.param_overrides[{index}]", backend.path);
            self.tool_name(&path, &table.tool);
            let rename: Vec<(String, String)> =
                table.rename.iter().map(|(own, shown)| (own.clone(), shown.clone())).collect();
            let more =
                Override { hide: table.hide.clone(), defaults: pairs(&table.defaults), rename };
            let whole = params.0.entry(table.tool.clone()).or_default();
            whole.extend(more);
            for (at, (own, shown)) in whole.rename.iter().enumerate() {
                let path = format!("{path}.rename");
                let again = |other: &(String, String)| other.0 == *own || other.1 == *shown;
                if own == shown || own.is_empty() || shown.is_empty() {
                    self.fault(&path, format!("found {own:?} = {shown:?}, accepted: another name"));
                } else if whole.rename[..at].iter().any(again) {
                    self.fault(&path, format!("{own:?} = {shown:?}: one of both is used twice"));
                } else if whole.hide.contains(own) {
                    self.fault(
                        &path,
                        format!("{own:?} is hidden, accepted: a parameter that is not"),
                    );
                }
            }
        }
        (!params.0.is_empty()).then_some(params)
    }

    fn inject(&mut self, backend: &NamedBackend) -> Option<Inject> {
        let mut inject = Inject::new(pairs(&backend.table.default_args));
        for (index, table) in backend.table.inject_args.iter().enumerate() {
            self.tool_name(&format!("{}.inject_args[{index}]", backend.path), &table.tool);
            inject.add(&table.tool, pairs(&table.args), table.overwrite);
        }
        (!inject.is_empty()).then_some(inject)
    }

    fn tool_name(&mut self, path: &str, name: &str) {
        if name.is_empty() {
            self.fault(&format!("{path}.tool"), "found an empty string, accepted: a tool's name");
        }
    }
}

fn retry(table: &RetryTable) -> Retry {
    let budget = |percent: &Share<100>| Budget::new(percent.0, table.min_retries_per_sec.0);
    Retry {
        max_retries: table.max_retries.0 as u32,
        initial: Duration::from_millis(table.initial_backoff_ms.0),
        max: Duration::from_millis(table.max_backoff_ms.0),
        tools: patterns(&table.tools),
        budget: table.budget_percent.as_ref().map(budget),
    }
}

pub(super) fn patterns(globs: &[Glob]) -> Patterns {
    Patterns(globs.iter().map(|glob| glob.0.clone()).collect())
}

fn pairs(args: &Args) -> Vec<(String, Box<[u8]>)> {
    args.pairs.clone()
}

#[cfg(test)]
mod tests {
    use super::super::config::ProxyConfig;

    /// The faults of a backend with these keys, one a line.
    fn faults(keys: &str) -> String {
        let text = format!(
            "[proxy]\nname = \"p\"\n[[backends]]\nname = \"a\"\ntransport = \"http\"\n\
             url = \"http://localhost/\"\n{keys}"
        );
        ProxyConfig::parse(&text).map(|_| String::new()).unwrap_or_else(|r| r.to_string())
    }

    /// The warnings of a backend with these keys, one a line.
    fn warnings(keys: &str) -> String {
        let text = format!(
            "[proxy]\nname = \"p\"\n[[backends]]\nname = \"a\"\ntransport = \"http\"\n\
             url = \"http://localhost/\"\n{keys}"
        );
        let warnings = ProxyConfig::parse(&text).expect("no faults").warnings();
        warnings.iter().map(|warning| format!("{warning}\n")).collect()
    }

    #[test]
    fn a_cache_that_may_surprise_is_warned_about() {
        let cache = "[backends.cache]\ntool_ttl_seconds = 60\n";
        assert_eq!(warnings(cache), "");
        for (keys, expected) in [
            ("[backends.cache]\n".to_owned(), "backends[0].cache: keeps nothing without"),
            (format!("isolation = \"shared\"\n{cache}"), "cache: all clients share one session"),
            (format!("isolation = \"session\"\n{cache}"), "cache: each session has a state"),
            (format!("{cache}scope = \"shared\""), "cache.scope: answers that one caller got"),
            (
                "[performance]\ncoalesce_tools = [\"a\"]".to_owned(),
                "performance.coalesce_tools: has no effect without",
            ),
            (
                "[performance]\ncoalesce_requests = true\ncoalesce_tools = [\"*\"]".to_owned(),
                "performance.coalesce_tools[0]: \"*\" runs identical calls",
            ),
        ] {
            let found = warnings(&keys);
            assert!(found.contains(expected), "{keys}\n{found}");
        }
    }

    #[test]
    fn rules_that_cannot_be_followed_are_faults_with_their_place() {
        for (keys, expected) in [
            (
                "expose_tools = [\"a\"]\nhide_tools = [\"b\"]",
                "proxy.toml:8:1: backends[0].hide_tools: not accepted together with expose_tools",
            ),
            (
                "hide_prompts = [\"ok\", \"a[\"]",
                "proxy.toml:7:23: backends[0].hide_prompts[1]: found \"a[\", a set without its ]",
            ),
            (
                "expose_resources = [\"re:(\"]",
                "proxy.toml:7:21: backends[0].expose_resources[0]: found \"re:(\", accepted: a reg",
            ),
            (
                "aliases = [{ from = \"a\", to = \"b\" }, { from = \"c\", to = \"b\" }]",
                "backends[0].aliases[1].to: \"b\" stands in another alias",
            ),
            (
                "aliases = [{ from = \"a\", to = \"b\" }, { from = \"a\", to = \"c\" }]",
                "backends[0].aliases[1].from: \"a\" stands in another alias",
            ),
            ("aliases = [{ from = \"a\" }]", "backends[0].aliases[0].to: missing"),
            (
                "default_args = { at = 1979-05-27 }",
                "backends[0].default_args.at: found a date, accepted: a string, number",
            ),
            (
                "default_args = { at = [1, { x = nan }] }",
                "backends[0].default_args.at[1].x: found NaN",
            ),
            (
                "inject_args = [{ tool = \"t\", args = {}, overwrit = true }]",
                "did you mean `overwrite`?",
            ),
            (
                "param_overrides = [{ tool = \"t\", hide = [\"a\"], rename = { a = \"b\" } }]",
                "backends[0].param_overrides[0].rename: \"a\" is hidden",
            ),
            (
                "param_overrides = [{ tool = \"t\", rename = { a = \"c\", b = \"c\" } }]",
                "one of both is used twice",
            ),
        ] {
            let found = faults(keys);
            assert!(found.contains(expected), "{keys}\n{found}");
        }
        assert_eq!(
            faults("aliases = [{ from = \"a\", to = \"b\" }]\nhide_tools = [\"re:x|y\"]"),
            ""
        );
    }
}
