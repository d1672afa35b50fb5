//! Owns: what runs but is likely to surprise: settings of a backend that have no effect together, or
//! another one than their author may think.
//! Never: faults (`compile`, `rules`, `roles`).
//! Next: `shared`, what runs such a plan.

use std::net::IpAddr;

use super::compile::Compiler;
use super::config::NamedBackend;
use crate::limits;

impl Compiler<'_> {
    /// Warns about one backend.
    pub(super) fn cautions(&mut self, backend: &NamedBackend) {
        let table = &backend.table;
        let path = |key: &str| format!("{}.{key}", backend.path);
        if let Some(hedging) = &table.hedging {
            let attempt = table.timeout.seconds.map_or(limits::CALL_TIMEOUT, |seconds| seconds.0);
            if hedging.max_hedges.0 == 0 {
                self.warning(&path("hedging.max_hedges"), "0 sends no second attempt at all");
            } else if u128::from(hedging.delay_ms.0) >= attempt.as_millis() {
                let message = format!(
                    "no second attempt is ever sent: the first one is given up after {} s",
                    attempt.as_secs_f64()
                );
                self.warning(&path("hedging.delay_ms"), message);
            }
        }
        if let Some(retry) = &table.retry {
            if retry.max_retries.0 == 0 {
                self.warning(&path("retry.max_retries"), "0 repeats nothing at all");
            } else if retry.initial_backoff_ms.0 > retry.max_backoff_ms.0 {
                let message = "longer than max_backoff_ms, which bounds it";
                self.warning(&path("retry.initial_backoff_ms"), message);
            }
        }
        if table.circuit_breaker.as_ref().is_some_and(|breaker| breaker.minimum_calls.0 == 1) {
            let message = "a single failure can shut the backend off";
            self.warning(&path("circuit_breaker.minimum_calls"), message);
        }
        if let Some(outlier) = &table.outlier_detection
            && outlier.max_ejection_percent.0 == 0
        {
            let message = "0 ejects no backend at all";
            self.warning(&path("outlier_detection.max_ejection_percent"), message);
        }
        if table.mirror_of.is_some() && table.mirror_percent.0 == 0 {
            self.warning(&path("mirror_percent"), "0: it hears nothing");
        }
        if let Some((_, name)) = table.role() {
            let url = |table: &super::config::BackendTable| table.url.clone();
            let called = self.config.backends.iter().find(|other| other.table.name == name);
            if url(table).is_some() && called.is_some_and(|called| url(&called.table) == url(table))
            {
                let message = format!("the same as that of {name:?}, which it stands behind");
                self.warning(&path("url"), message);
            }
            if self.config.spots.has(&path("prefix")) {
                self.warning(&path("prefix"), "has no effect: its own names are not listed");
            }
        }
        if table.forward_auth {
            if table.cache.is_some() {
                let message = "keeps nothing: what is answered to a client's own token \
                               (forward_auth) is for nobody else";
                self.warning(&path("cache"), message);
            }
            if table.url.as_deref().is_some_and(is_open_road) {
                let message = "tokens of clients are sent without encryption: the url is http";
                self.warning(&path("forward_auth"), message);
            }
        }
    }
}

/// Whether what is sent there can be read on the way.
fn is_open_road(url: &str) -> bool {
    let Ok(url) = super::compile::Url::parse(url) else { return false };
    let local = url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !url.https && !local && url.host != "localhost"
}
