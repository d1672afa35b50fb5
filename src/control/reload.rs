//! Owns: putting another configuration in the place of the one in force, without a stop.
//! Never: noticing that one is due (signals, files and requests come here by `Handle::reload`); what
//! workers do with a plan (`worker`).
//! Next: `watch_file`, one who asks for it.
//!
//! Another configuration is compiled as at the start. Backends that are reached as before keep their
//! numbers, and rows that say the same keep their state; the others get numbers that nobody has ever
//! heard. Every worker is told to make ready; when all are, all are told to go over. Whatever stands
//! in the way before that leaves everything as it was, and is told. One reload at a time, on the
//! control thread: a second one waits.
//!
//! Two things cannot change in a process that listens: where it does, and on how many threads. The
//! rest of a configuration that asks for that is put in force, and the keys are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::added::Added;
use super::admin::Office;
use super::banner;
use super::compile;
use super::config::ProxyConfig;
use super::diagnose::{Diagnosis, Report};
use super::jwks;
use super::watch_file::{self, Contents};
use crate::auth::Scheme;
use crate::limits;
use crate::middleware::outlier::Outlier;
use crate::plan::{self, BackendId, BackendPlan, Plan, slot};
use crate::worker::orders::Change;

/// What is to be put in force.
#[derive(Debug)]
pub(super) enum Wanted {
    /// The same files as they are now.
    Again,
    /// Another configuration.
    Config(Box<ProxyConfig>),
    /// The configuration in force with one backend more, until the process ends.
    Add(Box<Added>),
    /// The configuration in force without a backend, until the process ends.
    Remove(String),
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// How many configurations have been in force, this one too: 1 = that of the start.
    pub generation: u64,
    /// Backends that are new.
    pub added: Vec<String>,
    /// Backends that leave.
    pub removed: Vec<String>,
    /// Backends that are reached in another way than before: they leave and come.
    pub replaced: Vec<String>,
    /// Backends that go on under other rules.
    pub changed: Vec<String>,
    /// Keys whose new values need a restart; the old ones stay in force.
    pub needs_restart: Vec<String>,
    /// What runs but deserves a look.
    pub warnings: Vec<Diagnosis>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum NotApplied {
    /// The configuration has faults.
    Faults(Report),
    /// There is a backend of that name.
    Taken(String),
    /// There is no backend of that name.
    Unknown(String),
    /// The proxy could not go over to it; the text says why.
    Failed(String),
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotApplied::Faults(report) => report.fmt(f),
            NotApplied::Taken(name) => write!(f, "there is a backend {name:?} already"),
            NotApplied::Unknown(name) => write!(f, "there is no backend {name:?}"),
            NotApplied::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for NotApplied {}

/// What is known of reloads so far.
#[derive(Clone, Debug)]
pub struct Reloads {
    /// See [`Applied::generation`].
    pub generation: u64,
    /// Reloads that were put in force.
    pub applied: u64,
    /// Reloads that changed nothing.
    pub failed: u64,
    /// Why the last one changed nothing; `None` = it did what was wanted, or there was none.
    pub last_error: Option<String>,
    /// When the configuration in force was put there.
    pub since: SystemTime,
}

impl Default for Reloads {
    fn default() -> Reloads {
        Reloads { generation: 1, applied: 0, failed: 0, last_error: None, since: SystemTime::now() }
    }
}

/// Backends that were added and removed at run time: they outlast reloads, not the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    added: Vec<Added>,
    removed: BTreeSet<String>,
}

impl Overlay {
    fn put_over(&self, config: &mut ProxyConfig) {
        let own = |name: &str| self.added.iter().any(|added| added.name() == name);
        config.backends.retain(|backend| {
            let name = backend.table.name.as_str();
            !self.removed.contains(name) && !own(name)
        });
        self.added.iter().for_each(|added| added.put_into(config));
    }

    /// Leaves out what was added and does not fit to a configuration that is well without it: a
    /// request must not keep the file from coming into force. Says what.
    fn fit(&mut self, file: &ProxyConfig) -> Vec<Diagnosis> {
        let mut warnings = Vec::new();
        let added = std::mem::take(&mut self.added);
        for added in added {
            self.added.push(added);
            let mut config = file.clone();
            self.put_over(&mut config);
            let mut report = Report::default();
            compile::compile(&config, &mut report);
            report.sort();
            let fault = report.faults.into_iter().next();
            if let (Some(fault), Some(left_out)) = (fault, self.added.last()) {
                let message = format!("left out, it was added by a request: {}", fault.message);
                warnings.push(left_out.diagnosis(message));
                self.added.pop();
            }
        }
        warnings
    }

    /// What the file says and a request outdoes.
    fn outdone(&self, file: &ProxyConfig) -> Vec<Diagnosis> {
        let outdoes =
            |added: &&Added| file.backends.iter().any(|backend| backend.table.name == added.name());
        let message = "added by a request, it stands in the place of the file's backend of this \
                       name, until it is removed";
        let outdone = self.added.iter().filter(outdoes);
        outdone.map(|added| added.diagnosis(message.to_owned())).collect()
    }
}

/// Which numbers backends have had.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// By place: how often it was given away, and whether it is now.
    places: Vec<(u32, bool)>,
}

impl Numbers {
    /// Those of the first plan.
    pub(super) fn of(plan: &Plan) -> Numbers {
        let mut numbers = Numbers::default();
        plan.backends.iter().for_each(|backend| numbers.take(backend.id));
        numbers
    }

    fn take(&mut self, id: BackendId) {
        if self.places.len() <= slot(id) {
            self.places.resize(slot(id) + 1, (0, false));
        }
        self.places[slot(id)].1 = true;
    }

    /// A number that nobody has ever heard; none of `but`, which are about to be taken. `None` = all
    /// places are taken.
    fn fresh(&self, but: &[BackendId]) -> Option<BackendId> {
        (0..limits::BACKENDS_MAX).find_map(|place| {
            let (before, taken) = self.places.get(place).copied().unwrap_or_default();
            let free = !taken && !but.iter().any(|id| slot(*id) == place);
            free.then(|| plan::number(place, before))
        })
    }

    /// Nobody has anything to do with that backend any more.
    fn give_back(&mut self, id: BackendId) {
        if let Some((before, taken)) = self.places.get_mut(slot(id)) {
            (*before, *taken) = (before.wrapping_add(1), false);
        }
    }
}

impl Office<'_> {
    /// Puts a configuration in force, or says why not. Blocks until all workers have gone over.
    ///
    /// # Errors
    /// Nothing has changed.
    pub(super) fn reload(&mut self, wanted: Wanted) -> Result<Applied, NotApplied> {
        // What is wrong with a request is told to whoever made it, and is no fault of the file.
        let by_request = matches!(wanted, Wanted::Add(_) | Wanted::Remove(_));
        // Before they are read: what comes between is a change.
        let used = watch_file::contents(self.config.watched());
        let outcome = self.try_reload(wanted);
        self.watch(used, &outcome);
        match &outcome {
            Ok(applied) => {
                let Applied { generation, added, removed, replaced, changed, .. } = applied;
                tracing::info!(
                    generation,
                    ?added,
                    ?removed,
                    ?replaced,
                    ?changed,
                    "configuration reloaded"
                );
                for warning in &applied.warnings {
                    tracing::warn!("{warning}");
                }
                for key in &applied.needs_restart {
                    tracing::warn!(
                        key,
                        "its new value needs a restart: the old one stays in force"
                    );
                }
                self.shared.change(|state| {
                    let reloads = &mut state.reloads;
                    reloads.generation = *generation;
                    reloads.since = SystemTime::now();
                    if !by_request {
                        reloads.applied += 1;
                        reloads.last_error = None;
                    }
                });
            }
            Err(why) if by_request => tracing::warn!("a request changes nothing: {why}"),
            Err(why) => {
                tracing::error!("configuration not reloaded, the old one stays in force: {why}");
                self.shared.change(|state| {
                    state.reloads.failed += 1;
                    state.reloads.last_error = Some(why.to_string());
                });
            }
        }
        outcome
    }

    /// Watches the files of the configuration in force; of those that are known, `used` is what was
    /// in them. Of one that has faults also those it names: a secret that is missing may still come.
    fn watch(&self, used: Contents, outcome: &Result<Applied, NotApplied>) {
        let known = |path: &Path| used.iter().find(|(known, _)| known == path);
        let mut files = self.config.watched();
        if let Err(NotApplied::Faults(report)) = outcome
            && !files.is_empty()
        {
            files.extend_from_slice(report.named());
        }
        let (old, new): (Vec<PathBuf>, Vec<PathBuf>) =
            files.into_iter().partition(|path| known(path).is_some());
        let mut all = watch_file::contents(new);
        all.extend(old.iter().filter_map(|path| known(path)).cloned());
        self.watcher.watch(all);
    }

    fn try_reload(&mut self, wanted: Wanted) -> Result<Applied, NotApplied> {
        if self.shared.lock().shutdown_wanted {
            return Err(NotApplied::Failed("the proxy is ending".to_owned()));
        }
        let mut overlay = self.overlay.clone();
        let by_file = matches!(wanted, Wanted::Again | Wanted::Config(_));
        let file = match wanted {
            Wanted::Again => self.file.again().map_err(NotApplied::Faults)?,
            Wanted::Config(config) => *config,
            Wanted::Add(backend) => {
                let name = backend.name();
                if self.config.backends.iter().any(|known| known.table.name == name) {
                    return Err(NotApplied::Taken(name.to_owned()));
                }
                overlay.added.push(*backend);
                self.file.clone()
            }
            Wanted::Remove(name) => {
                if !self.config.backends.iter().any(|known| known.table.name == name) {
                    return Err(NotApplied::Unknown(name));
                }
                overlay.added.retain(|added| added.name() != name);
                // One that was only added may come by the file later.
                if self.file.backends.iter().any(|known| known.table.name == name) {
                    overlay.removed.insert(name);
                }
                self.file.clone()
            }
        };
        let mut config = file.clone();
        let needs_restart = self.keep_what_cannot_change(&mut config);
        let bare = config.clone();
        overlay.put_over(&mut config);
        let mut told = Vec::new();
        let mut next = next_plan(&self.plan, &self.numbers, &config);
        if by_file && matches!(next, Err(NotApplied::Faults(_))) {
            told = overlay.fit(&bare);
            if !told.is_empty() {
                config = bare;
                overlay.put_over(&mut config);
                next = next_plan(&self.plan, &self.numbers, &config);
            }
        }
        let (plan, mut warnings) = next?;
        if by_file {
            told.extend(overlay.outdone(&file));
        }
        warnings.extend(told);
        let mut applied = differences(&self.plan, &plan);
        (applied.needs_restart, applied.warnings) = (needs_restart, warnings);
        applied.generation = self.shared.lock().reloads.generation + 1;
        self.go_over(plan, &config)?;
        (self.file, self.config, self.overlay) = (file, config, overlay);
        self.shared.on_applied(&self.config);
        Ok(applied)
    }

    /// Puts back what a process that listens cannot change; the keys that were otherwise.
    fn keep_what_cannot_change(&self, config: &mut ProxyConfig) -> Vec<String> {
        let mut keys = Vec::new();
        let (old, new) = (&self.config.proxy, &mut config.proxy);
        if new.listen.host != old.listen.host {
            keys.push("proxy.listen.host".to_owned());
            new.listen.host.clone_from(&old.listen.host);
        }
        if new.listen.port.0 != old.listen.port.0 {
            keys.push("proxy.listen.port".to_owned());
            new.listen.port.0 = old.listen.port.0;
        }
        if new.workers.map(|workers| workers.0) != old.workers.map(|workers| workers.0) {
            keys.push("proxy.workers".to_owned());
        }
        new.workers = old.workers;
        if config.observability.json_logs != self.config.observability.json_logs {
            keys.push("observability.json_logs".to_owned());
            config.observability.json_logs = self.config.observability.json_logs;
        }
        keys
    }

    /// Makes all workers go over to a plan.
    fn go_over(&mut self, plan: Plan, config: &ProxyConfig) -> Result<(), NotApplied> {
        let failed = |why: String| NotApplied::Failed(why);
        if let Some(Scheme::Jwt(jwt)) = scheme(&plan)
            && !matches!(scheme(&self.plan), Some(Scheme::Jwt(old)) if Arc::ptr_eq(&old.shelf, &jwt.shelf))
        {
            jwks::start(&jwt.shelf).map_err(|e| failed(format!("cannot start a thread: {e}")))?;
        }
        let plan = Arc::new(plan);
        let outlets = self.watching.follow((&self.plan, &self.config), (&plan, config));
        let outlets = outlets.map_err(failed)?;
        let is_new = |backend: &&Arc<BackendPlan>| self.plan.backends.get(backend.id).is_none();
        for backend in plan.backends.iter().filter(is_new) {
            self.board.open(backend.id);
        }
        // What leaves is counted as its own until it has left.
        let leaves = self.plan.backends.iter().filter(|old| plan.backends.get(old.id).is_none());
        let leaves: Vec<_> = leaves.map(named).collect();
        let leaving = self.leaving.iter().chain(&leaves).cloned();
        let names: Vec<_> = plan.backends.iter().map(named).chain(leaving).collect();
        let table = self.metrics.switch(&names);
        let access = |config: &ProxyConfig| (config.auth.clone(), config.security.clone());
        let is_other_access = access(&self.config) != access(config);
        let change = Arc::new(Change::new(plan.clone(), table, is_other_access));
        if let Err(why) = self.crew.prepare(&change, outlets) {
            self.count_what_is_there();
            return Err(failed(why));
        }
        // From here on there is no way back. Answers that were given under other rules are old.
        self.outdate(&plan);
        for backend in &plan.backends {
            self.numbers.take(backend.id);
        }
        self.metrics.set_enabled(plan.watch.metrics);
        self.crew.commit(&change);
        self.outdate(&plan);
        if let Some(outlier) = plan.backends.iter().find_map(|b| b.around.outlier.as_ref()) {
            let all = plan.backends.iter().filter_map(|backend| backend.around.outlier.as_ref());
            outlier.ward().admit_all(all);
        }
        self.leaving.extend(leaves);
        self.plan = plan.clone();
        self.shared.change(|state| {
            let known = std::mem::take(&mut state.backends);
            state.backends = plan
                .backends
                .iter()
                .map(|backend| {
                    let same = known.iter().find(|status| status.id == backend.id);
                    same.cloned().unwrap_or_else(|| banner::starting(backend))
                })
                .collect();
            state.tls = plan.listen.tls.is_some();
        });
        Ok(())
    }

    /// Of backends with other rules for lists and messages, what was kept is no answer any more.
    fn outdate(&self, plan: &Plan) {
        for backend in &plan.backends {
            let before = self.plan.backends.get(backend.id);
            if before.is_some_and(|before| before.chain != backend.chain) {
                self.board.outdate(backend.id, true, true);
            }
        }
    }

    /// Gives the places of backends back that no worker has to do with any more.
    pub(super) fn tidy(&mut self) {
        let Office { leaving, board, numbers, .. } = self;
        let before = leaving.len();
        leaving.retain(|(id, _)| {
            let gone = board.has_left(*id);
            if gone {
                numbers.give_back(*id);
            }
            !gone
        });
        if leaving.len() != before {
            self.count_what_is_there();
        }
    }

    /// Metrics show the backends of the plan, and those that leave.
    fn count_what_is_there(&self) {
        let names = self.plan.backends.iter().map(named).chain(self.leaving.iter().cloned());
        self.metrics.switch(&names.collect::<Vec<_>>());
    }
}

/// The plan of a configuration, with the numbers and the state of what goes on.
fn next_plan(
    old: &Plan,
    numbers: &Numbers,
    config: &ProxyConfig,
) -> Result<(Plan, Vec<Diagnosis>), NotApplied> {
    let known: BTreeMap<&str, BackendId> =
        old.backends.iter().map(|backend| (&*backend.name, backend.id)).collect();
    let mut fresh: BTreeMap<String, BackendId> = BTreeMap::new();
    loop {
        let mut report = Report::default();
        let mut given: Vec<BackendId> = fresh.values().copied().collect();
        let mut number = |name: &str| match (fresh.get(name), known.get(name)) {
            (Some(id), _) => Some(*id),
            (None, Some(id)) => Some(*id),
            (None, None) => {
                let id = numbers.fresh(&given)?;
                given.push(id);
                Some(id)
            }
        };
        let plan = compile::compile_numbered(config, &mut report, &mut number);
        report.sort();
        let Some(mut plan) = plan else { return Err(NotApplied::Faults(report)) };
        // Reached in another way, it is another backend; its number may stand in other plans.
        let mut others = 0;
        for backend in &plan.backends {
            let before = old.backends.get(backend.id);
            if before.is_some_and(|before| !before.is_reached_like(backend)) {
                let all: Vec<BackendId> =
                    fresh.values().copied().chain(given.iter().copied()).collect();
                let Some(id) = numbers.fresh(&all) else {
                    let why = "too many backends, those that just leave too: try again later";
                    return Err(NotApplied::Failed(why.to_owned()));
                };
                fresh.insert(backend.name.to_string(), id);
                others += 1;
            }
        }
        if others == 0 {
            go_on_with(old, &mut plan);
            return Ok((plan, report.warnings));
        }
    }
}

fn named(backend: &Arc<BackendPlan>) -> (BackendId, Arc<str>) {
    (backend.id, backend.name.clone())
}

fn scheme(plan: &Plan) -> Option<&Scheme> {
    plan.access.as_ref()?.scheme.as_ref()
}

/// What differs between two plans.
fn differences(old: &Plan, new: &Plan) -> Applied {
    let mut applied = Applied::default();
    let named = |plan: &Plan, name: &str| plan.backends.iter().any(|b| &*b.name == name);
    for backend in &new.backends {
        let name = backend.name.to_string();
        match old.backends.get(backend.id) {
            Some(before) if **before == **backend => {}
            Some(_) => applied.changed.push(name),
            None if named(old, &name) => applied.replaced.push(name),
            None => applied.added.push(name),
        }
    }
    let gone = old.backends.iter().filter(|backend| !named(new, &backend.name));
    applied.removed = gone.map(|backend| backend.name.to_string()).collect();
    applied
}

/// Goes on with the state of what is the same in both.
fn go_on_with(old: &Plan, new: &mut Plan) {
    if new.rate == old.rate {
        new.rate.clone_from(&old.rate);
    }
    if let (Some(Scheme::Jwt(before)), Some(Scheme::Jwt(jwt))) =
        (scheme(old), new.access.as_mut().and_then(|access| access.scheme.as_mut()))
        && before.shelf.uri == jwt.shelf.uri
    {
        jwt.shelf = before.shelf.clone();
    }
    let ward = old.backends.iter().find_map(|b| b.around.outlier.as_ref()).map(Outlier::ward);
    let go_on = |mut backend: Arc<BackendPlan>| {
        let before = old.backends.get(backend.id);
        if let Some(before) = before.filter(|before| ***before == *backend) {
            return before.clone();
        }
        // Nobody else has it yet.
        if let Some(plan) = Arc::get_mut(&mut backend) {
            if let (Some(outlier), Some(ward)) = (&mut plan.around.outlier, ward) {
                outlier.move_to(ward);
                let mut all = old.backends.iter();
                let named = all.find(|before| before.name == plan.name);
                if let Some(before) = named.and_then(|named| named.around.outlier.as_ref()) {
                    outlier.count_on_with(before);
                }
            }
            if let Some(before) = before {
                plan.around.go_on_with(&before.around);
                if plan.chain.mirror == before.chain.mirror {
                    plan.chain.mirror.clone_from(&before.chain.mirror);
                }
            }
        }
        backend
    };
    new.backends = std::mem::take(&mut new.backends).into_all().into_iter().map(go_on).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::added;

    #[test]
    fn no_number_is_given_twice() {
        let mut numbers = Numbers::default();
        let mut given = BTreeSet::new();
        for _ in 0..100 {
            let one = numbers.fresh(&[]).unwrap();
            let two = numbers.fresh(&[one]).unwrap();
            assert_ne!(slot(one), slot(two));
            assert!(given.insert(one) && given.insert(two), "{one} {two}");
            assert!(slot(one) < 2 && slot(two) < 2, "places are used again");
            [one, two].into_iter().for_each(|id| numbers.take(id));
            assert!(slot(numbers.fresh(&[]).unwrap()) == 2);
            [one, two].into_iter().for_each(|id| numbers.give_back(id));
        }
        for _ in 0..limits::BACKENDS_MAX {
            let id = numbers.fresh(&[]).unwrap();
            numbers.take(id);
        }
        assert_eq!(numbers.fresh(&[]), None);
        numbers.give_back(plan::number(7, 0));
        assert_eq!(numbers.fresh(&[]).map(slot), Some(7));
    }

    const HEAD: &str = "[proxy]\nname='p'\nworkers=2\n";

    fn backend(name: &str, args: &str, rules: &str) -> String {
        format!(
            "[[backends]]\nname='{name}'\ntransport='stdio'\ncommand='true'\nargs=['{args}']\n\
             {rules}\n"
        )
    }

    fn first(text: &str) -> (Plan, Numbers) {
        let config = ProxyConfig::parse(&format!("{HEAD}{text}")).unwrap();
        let plan = compile::compile(&config, &mut Report::default()).unwrap();
        let numbers = Numbers::of(&plan);
        (plan, numbers)
    }

    fn next(old: &Plan, numbers: &mut Numbers, text: &str) -> (Plan, Applied) {
        let config = ProxyConfig::parse(&format!("{HEAD}{text}")).unwrap();
        let (plan, _) = next_plan(old, numbers, &config).unwrap();
        plan.backends.iter().for_each(|backend| numbers.take(backend.id));
        let applied = differences(old, &plan);
        (plan, applied)
    }

    fn find<'p>(plan: &'p Plan, name: &str) -> &'p Arc<BackendPlan> {
        plan.backends.iter().find(|backend| &*backend.name == name).unwrap()
    }

    #[test]
    fn what_is_the_same_goes_on_and_what_is_not_has_another_number() {
        let same = backend("same", "x", "circuit_breaker={}");
        let rules = |seconds: u32| {
            backend(
                "rules",
                "x",
                &format!("timeout={{seconds={seconds}}}\nrate_limit={{requests=1}}"),
            )
        };
        let moved = |args: &str| backend("moved", args, "");
        let gone = backend("gone", "x", "");
        let (old, mut numbers) = first(&[same.clone(), rules(1), moved("x"), gone].concat());
        let limit = |plan: &Plan, at: u64| {
            let rate = find(plan, "rules").around.rate.clone().unwrap();
            rate.admit(std::time::Duration::from_micros(at), None)
        };
        assert!(limit(&old, 1).is_ok());

        let (new, applied) = next(
            &old,
            &mut numbers,
            &[backend("come", "x", ""), moved("y"), rules(2), same.clone()].concat(),
        );
        assert!(Arc::ptr_eq(find(&old, "same"), find(&new, "same")));
        assert_eq!(find(&old, "rules").id, find(&new, "rules").id);
        assert!(limit(&new, 2).is_err(), "its limit counts on");
        assert_ne!(find(&old, "moved").id, find(&new, "moved").id);
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(applied.added, names(&["come"]));
        assert_eq!(applied.replaced, names(&["moved"]));
        assert_eq!(applied.changed, names(&["rules"]));
        assert_eq!(applied.removed, names(&["gone"]));
        let places: BTreeSet<usize> =
            old.backends.iter().chain(&new.backends).map(|backend| slot(backend.id)).collect();
        assert_eq!(places.len(), 6, "none has the place of one that is still there");
    }

    #[test]
    fn references_follow_the_numbers() {
        let copy = |args: &str| backend("copy", args, "mirror_of='main'");
        let main = |args: &str| backend("main", args, "");
        let (mut plan, mut numbers) = first(&[main("x"), copy("x")].concat());
        for (a, b) in [("x", "y"), ("y", "y"), ("z", "z")] {
            plan = next(&plan, &mut numbers, &[copy(b), main(a)].concat()).0;
            let mirrors = &find(&plan, "main").chain.mirror.as_ref().unwrap().0;
            let heard: Vec<_> = mirrors.iter().map(|(id, _)| *id).collect();
            assert_eq!(heard, [find(&plan, "copy").id]);
        }
    }

    #[test]
    fn what_is_added_and_removed_at_run_time_lies_over_the_file() {
        let file = ProxyConfig::parse(&format!(
            "{HEAD}{}{}",
            backend("one", "x", ""),
            backend("two", "x", "")
        ))
        .unwrap();
        let mut overlay = Overlay::default();
        let names = |overlay: &Overlay| {
            let mut config = file.clone();
            overlay.put_over(&mut config);
            config.backends.iter().map(|b| b.table.name.clone()).collect::<Vec<_>>().join(" ")
        };
        let added = |name: &str| {
            added::read(&format!(r#"{{"name":"{name}","url":"http://127.0.0.1:1/"}}"#)).unwrap()
        };
        overlay.added.push(added("three"));
        assert_eq!(names(&overlay), "one two three");
        overlay.removed.insert("one".into());
        assert_eq!(names(&overlay), "two three");
        // Removed, and added again as another one.
        overlay.added.push(added("one"));
        assert_eq!(names(&overlay), "two three one");
    }
}
