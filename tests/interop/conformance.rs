//! Owns: the official conformance suite, check by check: through the proxy as directly.
//! Never: a difference that no row of `MEANT` gives the reason for.
//!
//! The reference server of the suite's authors speaks both eras at one URL and passes everything
//! that counts. It stands behind the proxy alone (layout a), then beside server-everything
//! (layout b), each time under its own names, because the suite calls tools by name. Every run has
//! a reference server of its own, as that one remembers.
//!
//! The reference has no tasks extension: its scenarios run on the stub, which has the tools that they
//! ask for.
//!
//! One run: `MCP_PROXY_CONFORMANCE_ONLY=2025-11-25:a cargo test --test tests conformance`; without
//! the letter both layouts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use super::install::{self, Suite};
use super::run::{self, Everything, Reference};
use crate::support::process::{HttpStub, stdio_backend};

/// What the suite is asked for, and how much of it the pinned version has.
struct Revision {
    name: &'static str,
    args: &'static [&'static str],
    scenarios: usize,
    checks: usize,
    direct: OnceLock<Checks>,
}

static JUNE: Revision = Revision {
    name: "2025-06-18",
    args: &["--suite", "all", "--spec-version", "2025-06-18"],
    scenarios: 27,
    checks: 56,
    direct: OnceLock::new(),
};
static NOVEMBER: Revision = Revision {
    name: "2025-11-25",
    args: &["--requirements", "2025-11-25"],
    scenarios: 33,
    checks: 84,
    direct: OnceLock::new(),
};
static JULY: Revision = Revision {
    name: "2026-07-28",
    args: &["--requirements", "2026-07-28"],
    scenarios: 50,
    checks: 196,
    direct: OnceLock::new(),
};

/// One thing that is otherwise through the proxy, on purpose, and why.
struct Meant {
    scenario: &'static str,
    check: &'static str,
    direct: &'static str,
    through: &'static str,
}

const MEANT: [Meant; 1] = [
    // An answer that nothing precedes comes as JSON, which the specification leaves to servers:
    // some clients open a new connection after every event stream. The reference always streams.
    Meant {
        scenario: "server-sse-multiple-streams",
        check: "server-sse-streams-functional",
        direct: "SUCCESS",
        through: "INFO",
    },
];

/// What the suite writes down of its traffic, among the checks.
const RECORDS: [&str; 4] =
    ["outgoing-request", "incoming-response", "incoming-sse-event", "stream-closed"];

type Checks = BTreeMap<Key, Said>;

/// Which check of a run.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    scenario: String,
    check: String,
    /// How often the same check of the same scenario came before.
    before: usize,
}

/// What a check said.
struct Said {
    outcome: String,
    complaint: String,
}

/// How the reference server stands behind the proxy.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Alone,
    Beside,
}

fn same_as_directly(revision: &'static Revision, layout: Layout) {
    let letter = if layout == Layout::Alone { "a" } else { "b" };
    if let Ok(only) = std::env::var("MCP_PROXY_CONFORMANCE_ONLY")
        && only != revision.name
        && only != format!("{}:{letter}", revision.name)
    {
        return;
    }
    let (Some(suite), Some(_), Some(home)) =
        (install::suite(), install::reference(), install::node())
    else {
        return;
    };
    // One at a time: the suite waits for some things no longer than a second or two.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);

    let direct = revision.direct.get_or_init(|| directly(suite, revision));
    let scratch = tempfile::tempdir().expect("scratch folder");
    let log = |name: &str| scratch.path().join(name);
    let reference = Reference::start(&log("reference.log"));
    let mut tables = vec![reference.table("reference") + "prefix = \"\"\n"];
    let everything =
        (layout == Layout::Beside).then(|| Everything::start(home, log("everything.log")));
    tables.extend(everything.as_ref().map(|everything| everything.table("everything")));
    let (proxy, url) = run::proxy(&tables);
    // Both are there: what passes does not pass because there was nothing to do.
    proxy.client_seeing(&["test_simple_text", "json_schema_2020_12_tool"]);
    if everything.is_some() {
        proxy.client_seeing(&["everything__echo"]);
    }
    let through = scenarios(suite, revision, &url).checks;

    let differences = differences(direct, &through);
    assert!(
        differences.is_empty(),
        "{}, layout {letter}: {} differ of {} checks\n{}",
        revision.name,
        differences.len(),
        direct.len(),
        differences.join("\n")
    );
}

/// The suite on a reference server of its own, which passes all that counts.
fn directly(suite: &Suite, revision: &Revision) -> Checks {
    let scratch = tempfile::tempdir().expect("scratch folder");
    let reference = Reference::start(&scratch.path().join("reference.log"));
    let run = scenarios(suite, revision, &reference.url);
    assert!(run.passed, "{}: the reference server fails:\n{}", revision.name, run.said);
    assert_eq!(run.scenarios, revision.scenarios, "{}", revision.name);
    assert_eq!(run.checks.len(), revision.checks, "{}", revision.name);
    run.checks
}

/// The scenarios of the tasks extension (SEP-2663), and how many checks they make.
const TASKS: [&str; 10] = [
    "tasks-capability-negotiation",
    "tasks-dispatch-and-envelope",
    "tasks-lifecycle",
    "tasks-mrtr-composition",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-request-state-removal",
    "tasks-required-task-error",
    // Skipped by the suite itself, so far.
    "tasks-status-notifications",
    "tasks-wire-fields",
];
const TASKS_CHECKS: usize = 45;

/// Those scenarios on one server.
fn tasks_scenarios(suite: &Suite, url: &str) -> Checks {
    let out = tempfile::tempdir().expect("scratch folder");
    let mut said = String::new();
    for scenario in TASKS {
        let args = ["--scenario", scenario, "--spec-version", "2026-07-28", "--force"];
        said += &ask(suite, url, &args, out.path()).1;
    }
    read(out.path(), true, said).checks
}

/// One run of the suite.
struct Run {
    scenarios: usize,
    checks: Checks,
    /// Whether all passed that counts.
    passed: bool,
    said: String,
}

fn scenarios(suite: &Suite, revision: &Revision, url: &str) -> Run {
    let out = tempfile::tempdir().expect("scratch folder");
    let (passed, said) = ask(suite, url, revision.args, out.path());
    read(out.path(), passed, said)
}

/// Has the suite look at a server; whether all passed that counts, and what it said.
fn ask(suite: &Suite, url: &str, args: &[&str], out: &Path) -> (bool, String) {
    let mut command = Command::new(&suite.node);
    command.arg(&suite.script).args(["server", "--url", url]).args(args);
    command.arg("--output-dir").arg(out);
    let (status, said, complaint) = run::finish(command, "");
    (status.success(), said + &complaint)
}

/// What it wrote down.
fn read(out: &Path, passed: bool, said: String) -> Run {
    let mut run = Run { scenarios: 0, checks: Checks::new(), passed, said };
    for folder in std::fs::read_dir(out).expect("results") {
        let folder = folder.expect("entry").path();
        let scenario = scenario(&folder);
        let list: Vec<Value> = match std::fs::read(folder.join("checks.json")) {
            Ok(text) => serde_json::from_slice(&text).expect("JSON of the suite"),
            // The scenario itself failed, which it says on stderr alone.
            Err(_) => {
                let mut lines = run.said.lines();
                let start = format!("Failed to run scenario {scenario}: ");
                let line = lines.find_map(|line| line.strip_prefix(&start)).unwrap_or(&run.said);
                vec![json!({ "id": "run", "status": "FAILURE", "errorMessage": line })]
            }
        };
        run.scenarios += 1;
        add(&mut run.checks, &scenario, &list);
    }
    run
}

/// The name of a scenario whose folder is `server-NAME-TIME`.
fn scenario(folder: &Path) -> String {
    let name = folder.file_name().expect("name").to_str().expect("UTF-8");
    let time = "-2026-01-01T00-00-00-000Z".len();
    name["server-".len()..name.len() - time].to_owned()
}

fn add(checks: &mut Checks, scenario: &str, list: &[Value]) {
    for check in list {
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let (id, outcome) = (text("id"), text("status"));
        if outcome == "INFO" && RECORDS.contains(&id.as_str()) {
            continue;
        }
        let mut key = Key { scenario: scenario.to_owned(), check: id, before: 0 };
        while checks.contains_key(&key) {
            key.before += 1;
        }
        checks.insert(key, Said { outcome, complaint: text("errorMessage") });
    }
}

/// Every check whose outcome is otherwise, a line each; complaints may differ.
fn differences(direct: &Checks, through: &Checks) -> Vec<String> {
    let outcome = |checks: &Checks, key: &Key| match checks.get(key) {
        Some(said) => said.outcome.clone(),
        None => "absent".to_owned(),
    };
    let keys: BTreeSet<&Key> = direct.keys().chain(through.keys()).collect();
    let differ = keys.into_iter().filter(|key| {
        let meant = MEANT.iter().find(|meant| {
            (meant.scenario, meant.check) == (&*key.scenario, &*key.check)
                && outcome(direct, key) == meant.direct
        });
        let expected = meant.map_or_else(|| outcome(direct, key), |meant| meant.through.to_owned());
        outcome(through, key) != expected
    });
    let line = |key: &Key| {
        let complaint = |checks: &Checks| match checks.get(key) {
            Some(said) if !said.complaint.is_empty() => format!(" ({})", said.complaint),
            _ => String::new(),
        };
        format!(
            "{} / {}{}: {}{} -> {}{}",
            key.scenario,
            key.check,
            if key.before > 0 { format!(" #{}", key.before + 1) } else { String::new() },
            outcome(direct, key),
            complaint(direct),
            outcome(through, key),
            complaint(through),
        )
    };
    differ.map(line).collect()
}

#[test]
fn the_tasks_extension() {
    let Some(suite) = install::suite() else { return };
    let args = ["--modern", "--tasks"];
    let stub = HttpStub::start("direct", &args);
    let direct = tasks_scenarios(suite, &format!("http://{}/mcp", stub.addr));
    let told = |said: &Said| format!("{} {}", said.outcome, said.complaint);
    let bad: Vec<String> = direct
        .iter()
        .filter(|(key, said)| {
            said.outcome != "SUCCESS" && key.scenario != "tasks-status-notifications"
        })
        .map(|(key, said)| format!("{} / {}: {}", key.scenario, key.check, told(said)))
        .collect();
    assert!(bad.is_empty(), "the stub fails:\n{}", bad.join("\n"));
    assert_eq!(direct.len(), TASKS_CHECKS);
    // Over HTTP and over stdio, each beside another one that has tasks of the same ids.
    let bare = "prefix = \"\"\n";
    let fresh = HttpStub::start("web", &args);
    for (own, other) in [
        (fresh.backend("web") + bare, stdio_backend("pipe", &args)),
        (stdio_backend("pipe", &args) + bare, fresh.backend("web")),
    ] {
        let seen = if own.contains("web") { "pipe__greet" } else { "web__greet" };
        let (proxy, url) = run::proxy(&[own, other]);
        proxy.client_seeing(&["greet", seen]);
        let differences = differences(&direct, &tasks_scenarios(suite, &url));
        assert!(differences.is_empty(), "beside {seen}:\n{}", differences.join("\n"));
    }
}

#[test]
fn differences_are_outcomes() {
    let checks = |list: &[(&str, &str, &str)]| {
        let mut checks = Checks::new();
        for (scenario, id, status) in list {
            add(&mut checks, scenario, &[json!({ "id": id, "status": status })]);
        }
        checks
    };
    let meant = &MEANT[0];
    let direct = checks(&[
        ("s", "same", "SUCCESS"),
        ("s", "twice", "SUCCESS"),
        ("s", "twice", "SUCCESS"),
        ("s", "gone", "FAILURE"),
        ("s", "stream-closed", "INFO"),
        (meant.scenario, meant.check, meant.direct),
    ]);
    let mut through = checks(&[
        ("s", "same", "SUCCESS"),
        ("s", "twice", "SUCCESS"),
        ("s", "twice", "WARNING"),
        ("s", "new", "SKIPPED"),
        (meant.scenario, meant.check, meant.through),
    ]);
    assert_eq!(
        differences(&direct, &through),
        [
            "s / gone: FAILURE -> absent",
            "s / new: absent -> SKIPPED",
            "s / twice #2: SUCCESS -> WARNING",
        ]
    );
    // What is meant must be so.
    through.retain(|key, _| key.scenario == "s");
    assert_eq!(differences(&direct, &through).len(), 4);
}

#[test]
fn revision_2025_06_18_alone() {
    same_as_directly(&JUNE, Layout::Alone);
}

#[test]
fn revision_2025_06_18_beside_another() {
    same_as_directly(&JUNE, Layout::Beside);
}

#[test]
fn revision_2025_11_25_alone() {
    same_as_directly(&NOVEMBER, Layout::Alone);
}

#[test]
fn revision_2025_11_25_beside_another() {
    same_as_directly(&NOVEMBER, Layout::Beside);
}

#[test]
fn revision_2026_07_28_alone() {
    same_as_directly(&JULY, Layout::Alone);
}

#[test]
fn revision_2026_07_28_beside_another() {
    same_as_directly(&JULY, Layout::Beside);
}
