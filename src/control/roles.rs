//! Owns: which backends stand behind another one: `mirror_of`, `canary_of`, `failover_for`.
//! Never: what becomes of calls (`middleware::mirror`, `middleware::route`).
//! Next: `caution`.

use super::compile::Compiler;
use super::config::{BackendTable, NamedBackend};
use super::diagnose::nearest;
use crate::middleware::mirror::Spread;
use crate::middleware::route::Route;
use crate::plan::{BackendId, BackendPlan};

/// What a backend is to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It hears calls.
    Mirror,
    /// It answers a share of them.
    Canary,
    /// It answers them in need.
    Failover,
}

impl Role {
    /// The key that gives it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Role::Mirror => "mirror_of",
            Role::Canary => "canary_of",
            Role::Failover => "failover_for",
        }
    }

    /// The key that means nothing without it.
    pub(super) fn detail(self) -> &'static str {
        match self {
            Role::Mirror => "mirror_percent",
            Role::Canary => "weight",
            Role::Failover => "priority",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Role::Mirror => "mirror",
            Role::Canary => "canary",
            Role::Failover => "failover",
        }
    }

    pub(super) const ALL: [Role; 3] = [Role::Mirror, Role::Canary, Role::Failover];
}

impl BackendTable {
    pub(super) fn stands_behind(&self, role: Role) -> Option<&str> {
        match role {
            Role::Mirror => self.mirror_of.as_deref(),
            Role::Canary => self.canary_of.as_deref(),
            Role::Failover => self.failover_for.as_deref(),
        }
    }

    /// What it is to another one; `None` = clients call it themselves.
    pub(super) fn role(&self) -> Option<(Role, &str)> {
        Role::ALL.into_iter().find_map(|role| Some((role, self.stands_behind(role)?)))
    }
}

/// Who stands behind one backend.
#[derive(Default)]
struct Behind<'a> {
    canaries: Vec<(BackendId, u64)>,
    /// With their priorities.
    failovers: Vec<(u64, BackendId)>,
    /// Every canary in the file, also those that are not enabled.
    weights: Vec<(&'a NamedBackend, u64)>,
}

impl Compiler<'_> {
    /// Who stands behind whom.
    pub(super) fn roles(&mut self, plans: &mut [BackendPlan]) {
        let config = self.config;
        let mut behind: Vec<Behind<'_>> =
            config.backends.iter().map(|_| Behind::default()).collect();
        for backend in &config.backends {
            let table = &backend.table;
            self.details(backend);
            let Some((role, name)) = table.role() else { continue };
            let Some(called) = self.called(backend, role, name) else { continue };
            let find = |name: &str| plans.iter().position(|plan| &*plan.name == name);
            let (own, to) = (find(&table.name).map(|own| plans[own].id), find(name));
            if table.enabled && to.is_none() {
                let path = format!("{}.{}", backend.path, role.key());
                self.warning(&path, format!("{name:?} is not enabled: nobody calls this backend"));
            }
            let behind = &mut behind[called];
            match role {
                Role::Mirror => {
                    if let (Some(own), Some(to)) = (own, to) {
                        let spread = Spread::new(table.mirror_percent.0);
                        plans[to].chain.mirror.get_or_insert_default().0.push((own, spread));
                    }
                }
                Role::Canary => {
                    let weight = table.weight.map_or(1, |weight| weight.0);
                    behind.weights.push((backend, weight));
                    behind.canaries.extend(own.map(|own| (own, weight)));
                }
                Role::Failover => behind.failovers.extend(own.map(|own| (table.priority.0, own))),
            }
        }
        for (called, behind) in config.backends.iter().zip(&mut behind) {
            self.weights(&called.table.name, &behind.weights);
            if let Some(plan) = plans.iter_mut().find(|plan| *plan.name == *called.table.name)
                && (!behind.canaries.is_empty() || !behind.failovers.is_empty())
                && self.report.is_ok()
            {
                // Of equals the first in the file.
                behind.failovers.sort_by_key(|(priority, _)| *priority);
                let failovers = behind.failovers.iter().map(|(_, id)| *id).collect();
                plan.around.route = Some(Route::new(&behind.canaries, failovers));
            }
        }
    }

    /// Roles go together with no other, and a canary needs its weight.
    fn details(&mut self, backend: &NamedBackend) {
        let path = |key: &str| format!("{}.{key}", backend.path);
        let mut first: Option<Role> = None;
        for role in Role::ALL {
            let has = backend.table.stands_behind(role).is_some();
            match first {
                Some(first) if has => {
                    let message = format!("not accepted together with {}", first.key());
                    self.key_fault(&path(role.key()), message);
                }
                None if has => first = Some(role),
                _ => {}
            }
        }
        let table = &backend.table;
        let blamed = self.report.blames(&path("weight"));
        if table.canary_of.is_some() && table.weight.is_none() && !blamed {
            let message = "needs weight too, accepted: 1 to 99, the percent of the calls";
            self.key_fault(&path("canary_of"), message);
        }
    }

    /// The place of the backend that a role names.
    fn called(&mut self, backend: &NamedBackend, role: Role, name: &str) -> Option<usize> {
        let all = &self.config.backends;
        let at = all.iter().position(|other| other.table.name == name);
        let message = match at.map(|at| &all[at]) {
            None => {
                let callable = all.iter().filter(|other| other.table.role().is_none());
                let hint = match nearest(name, callable.map(|other| &*other.table.name)) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "accepted: the name of another backend".to_owned(),
                };
                format!("found {name:?}, {hint}")
            }
            Some(other) if other.path == backend.path => {
                format!("{name:?} is this backend, accepted: the name of another one")
            }
            Some(other) => match other.table.role() {
                Some((its, _)) => format!(
                    "{name:?} is a {} itself, accepted: a backend that clients call",
                    its.noun()
                ),
                None => return at,
            },
        };
        self.fault(&format!("{}.{}", backend.path, role.key()), message);
        None
    }

    /// The canaries of one backend have less than all.
    fn weights(&mut self, called: &str, canaries: &[(&NamedBackend, u64)]) {
        let mut sum = 0;
        for (backend, weight) in canaries {
            sum += weight;
            if sum > 99 {
                let message = format!(
                    "the canaries of {called:?} have {sum} percent with this one, accepted: 99 at \
                     most"
                );
                return self.fault(&format!("{}.weight", backend.path), message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ProxyConfig;

    /// A proxy with the backends `a`, `b` and so on, each with these keys.
    fn parse(keys: &[&str]) -> Result<ProxyConfig, String> {
        let mut text = "[proxy]\nname = \"p\"\n".to_owned();
        for (name, keys) in ('a'..).zip(keys) {
            text += &format!(
                "[[backends]]\nname = \"{name}\"\ntransport = \"http\"\nurl = \"http://{name}/\"\n{keys}\n"
            );
        }
        ProxyConfig::parse(&text).map_err(|report| report.to_string())
    }

    #[test]
    fn roles_that_cannot_be_are_faults_with_their_place() {
        let canary = "canary_of = \"a\"\nweight = 10";
        for (keys, expected) in [
            (&["mirror_of = \"x\""][..], "proxy.toml:7:13: backends[0].mirror_of: found \"x\""),
            (&["mirror_of = \"a\""], "backends[0].mirror_of: \"a\" is this backend"),
            (&["failover_for = \"a\""], "backends[0].failover_for: \"a\" is this backend"),
            (&["", "canary_of = \"A\"\nweight = 1"], "found \"A\", did you mean \"a\"?"),
            (
                &["mirror_percent = 5"],
                "proxy.toml:7:1: backends[0].mirror_percent: not accepted without mirror_of",
            ),
            (&["weight = 5"], "backends[0].weight: not accepted without canary_of"),
            (&["", "mirror_of = \"a\"\nweight = 5"], "weight: not accepted without canary_of"),
            (&["priority = 5"], "backends[0].priority: not accepted without failover_for"),
            (
                &["", "canary_of = \"a\""],
                "proxy.toml:12:1: backends[1].canary_of: needs weight too, accepted: 1 to 99",
            ),
            (&["", "canary_of = \"a\"\nweight = 100"], "backends[1].weight: found 100, accepted"),
            (&["", "canary_of = \"a\"\nweight = 0"], "backends[1].weight: found 0, accepted"),
            (
                &["", canary, "canary_of = \"a\"\nweight = 90"],
                "proxy.toml:19:10: backends[2].weight: the canaries of \"a\" have 100 percent",
            ),
            (
                &["", canary, "mirror_of = \"b\""],
                "backends[2].mirror_of: \"b\" is a canary itself, accepted: a backend that clients",
            ),
            (
                &["", canary, "failover_for = \"b\""],
                "backends[2].failover_for: \"b\" is a canary itself",
            ),
            // A circle.
            (
                &["failover_for = \"b\"", "failover_for = \"a\""],
                "backends[0].failover_for: \"b\" is a failover itself",
            ),
            (
                &["", "mirror_of = \"a\"\nfailover_for = \"a\""],
                "proxy.toml:13:1: backends[1].failover_for: not accepted together with mirror_of",
            ),
        ] {
            let found = parse(keys).expect_err("a fault");
            assert!(found.contains(expected), "{keys:?}\n{found}");
        }
    }

    #[test]
    fn what_stands_behind_a_backend_that_is_off_is_warned_about() {
        let config = parse(&["enabled = false", "failover_for = \"a\"", ""]).unwrap();
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let text = warnings[0].to_string();
        assert!(text.contains("backends[1].failover_for: \"a\" is not enabled"), "{text}");
        // And the other way round nothing is amiss.
        assert_eq!(parse(&["", "enabled = false\nfailover_for = \"a\""]).unwrap().warnings(), []);
        let several = ["", "canary_of = \"a\"\nweight = 50", "canary_of = \"a\"\nweight = 49"];
        assert_eq!(parse(&several).unwrap().warnings(), []);
    }
}
