//! Owns: the tests of the configuration: every key, every fault, and the shipped file.
//! Never: plans.
//! Next: nothing.

use std::time::Duration;

use super::super::setting::{GiveUp, Inherit, IsolationKey, KeyDoc, Millis, Transport, join};
use super::*;

pub(in super::super) fn world() -> World {
    World {
        folder: PathBuf::new(),
        var: Rc::new(|name| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "SNEAKY" => Some("${SET}".to_owned()),
            "FILE" => Some("file:/etc/hostname".to_owned()),
            // Of the shipped file; each its own, as equal ones are a fault.
            token if token.ends_with("_TOKEN") => Some(format!("0123456789abcdef-{token}")),
            _ => None,
        }),
    }
}

fn check(text: &str) -> Result<ProxyConfig, Report> {
    ProxyConfig::check("p.toml", text, &world())
}

/// The faults of a text, one a line.
fn faults(text: &str) -> String {
    check(text).map(|_| "none".to_owned()).unwrap_or_else(|report| report.to_string())
}

const PROXY: &str = "[proxy]\nname = \"p\"\n";

#[test]
fn defaults() {
    let config = check(PROXY).unwrap();
    assert_eq!(config.proxy, ProxyTable { name: "p".to_owned(), ..ProxyTable::default() });
    assert_eq!(config.proxy.listen.port, Count(8080));
    assert!(config.backends.is_empty());
}

#[test]
fn every_key_is_read() {
    let config = check(
        r#"
        [proxy]
        name = "p"
        version = "9"
        separator = "/"
        instructions = "i"
        workers = 3
        shutdown_timeout_seconds = 1.5
        max_sessions = 7
        session_idle_seconds = 8
        [proxy.listen]
        host = "::1"
        port = 1
        allowed_origins = ["http://a"]
        allowed_hosts = ["a"]
        [[backends]]
        name = "files"
        prefix = ""
        enabled = false
        transport = "stdio"
        command = "true"
        args = ["a", "${SET}"]
        env = { A = "${SET}" }
        cwd = "/"
        inherit_env = true
        isolation = "session"
        startup_timeout_seconds = 2
        max_children = 3
        idle_stop_seconds = 4
        restart = { initial_ms = 5, max_ms = 6, give_up_after = 7 }
        timeout.seconds = 0.25
        [[backends]]
        name = "web"
        transport = "http"
        url = "http://localhost/mcp"
        bearer_token = "t"
        headers = { X-A = "b" }
        max_connections = 9
        idle_seconds = 10
        "#,
    )
    .unwrap();
    let proxy = &config.proxy;
    assert_eq!((proxy.version.as_str(), proxy.separator.as_str()), ("9", "/"));
    assert_eq!(proxy.instructions.as_deref(), Some("i"));
    assert_eq!((proxy.workers, proxy.max_sessions), (Some(Count(3)), Count(7)));
    assert_eq!(proxy.shutdown_timeout_seconds.0, Duration::from_millis(1500));
    assert_eq!(proxy.session_idle_seconds.0, Duration::from_secs(8));
    assert_eq!((proxy.listen.host.as_str(), proxy.listen.port), ("::1", Count(1)));
    assert_eq!(proxy.listen.allowed_origins.as_deref(), Some(&["http://a".to_owned()][..]));
    assert_eq!(proxy.listen.allowed_hosts.as_deref(), Some(&["a".to_owned()][..]));
    let files = &config.backends[0].table;
    assert_eq!((files.name.as_str(), files.prefix.as_deref()), ("files", Some("")));
    assert!(!files.enabled);
    assert_eq!(files.args, ["a", "value"]);
    assert_eq!(files.env["A"].0.expose(), "value");
    assert_eq!(files.inherit_env, Inherit::All);
    assert_eq!(files.isolation, Some(IsolationKey::Session));
    assert_eq!(files.restart.give_up_after, GiveUp::After(7));
    assert_eq!((files.restart.initial_ms, files.restart.max_ms), (Count(5), Count(6)));
    assert_eq!(files.timeout.seconds, Some(Millis(Duration::from_millis(250))));
    assert_eq!((files.max_children, files.idle_stop_seconds.0.as_secs()), (Some(Count(3)), 4));
    let web = &config.backends[1].table;
    assert_eq!(web.transport, Transport::Http);
    assert_eq!(web.bearer_token.as_ref().unwrap().expose(), "t");
    assert_eq!(web.headers["X-A"].expose(), "b");
    assert_eq!((web.max_connections, web.idle_seconds.0.as_secs()), (Count(9), 10));
}

/// What `GET /admin/config` shows can be read again, and tells no secret.
#[test]
fn what_is_in_force_can_be_put_in_force() {
    let jwt = "type = 'jwt'\nissuer = 'https://i'\naudience = 'a'\njwks_uri = 'https://i/keys'";
    let backends = "[[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'x'\n\
                    [[backends]]\nname = 'b'\ntransport = 'http'\nurl = 'http://h/'\n\
                    mirror_of = 'a'\n\
                    [[backends]]\nname = 'c'\ntransport = 'sse'\nurl = 'https://h/'\n\
                    canary_of = 'a'\nweight = 5\n\
                    [[backends]]\nname = 'd'\ntransport = 'http'\nurl = 'https://h/2'\n\
                    failover_for = 'a'\n";
    for auth in [jwt, "type = 'bearer'\ntokens = ['0123456789abcdef']"] {
        let text = format!("[proxy]\nname = 'p'\n[auth]\n{auth}\n{backends}");
        let config = ProxyConfig::parse(&text).unwrap_or_else(|report| panic!("{report}"));
        let shown = config.effective().replace("***", "0123456789abcdef");
        let again = ProxyConfig::parse(&shown).unwrap_or_else(|r| panic!("{r}\n{shown}"));
        assert_eq!(again.effective().replace("***", "0123456789abcdef"), shown);
    }
}

#[test]
fn the_effective_configuration() {
    let text = r#"
        [proxy]
        name = "p"
        rate_limit = { requests = 5 }
        [auth]
        type = "jwt"
        issuer = "https://i"
        audience = "a"
        jwks_uri = "https://i/keys"
        [observability]
        audit = { path = "/var/log/audit", include_arguments = true }
        [observability.tracing.headers]
        X-Key = "s3cret-a"
        [[backends]]
        name = "a"
        transport = "stdio"
        command = "true"
        args = ["--token", "s3cret-b"]
        env = { KEY = "s3cret-c" }
        default_args = { key = "${SET}", x = [1, { y = 2 }] }
        circuit_breaker = {}
        [[backends.aliases]]
        from = "x"
        to = "y"
        [[backends]]
        name = "b"
        transport = "http"
        url = "http://h/mcp?key=s3cret-d"
        bearer_token = "s3cret-e"
        headers = { X-A = "s3cret-f" }
    "#;
    let shown = check(text).unwrap().effective();
    assert!(!shown.contains("s3cret") && !shown.contains("value"), "{shown}");
    for part in [
        "\nrequests = 5\n",
        "\ntype = \"jwt\"\n",
        "\nport = 8080\n",
        "\n[[backends.aliases]]\n",
        "\nfailure_rate_threshold = 0.5\n",
        "\nurl = \"http://h/mcp?***\"\n",
        "audit = { path = \"/var/log/audit\", include_arguments = true }",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let document: toml::Table = shown.parse().unwrap_or_else(|e| panic!("{e}: {shown}"));
    assert_eq!(document["backends"].as_array().unwrap().len(), 2);
    assert!(document["backends"][1].as_table().unwrap().get("aliases").is_none());
}

#[test]
fn all_faults_at_once_in_the_order_of_the_file() {
    let text = r#"[proxy]
nmae = "p"
workers = 0
max_sessions = "many"
[proxy.listen]
port = 80_000
hots = "::1"
[[backends]]
name = "a"
transport = "stdio"
command = ["x"]
args = ["a", 1, "b", true]
[[backends]]
name = "b"
transport = "carrier"
[[backends]]
transport = "http"
url = "ftp://x"
headers = { Host = "x" }
"#;
    let expected = r#"p.toml:1:1: proxy.name: missing, and there is no default
p.toml:2:1: proxy.nmae: unknown key, did you mean `name`?
p.toml:3:11: proxy.workers: found 0, accepted: an integer from 1 to 512
p.toml:4:16: proxy.max_sessions: found "many", accepted: an integer from 1 to 10000000
p.toml:6:8: proxy.listen.port: found 80000, accepted: an integer from 0 to 65535
p.toml:7:1: proxy.listen.hots: unknown key, did you mean `host`?
p.toml:11:11: backends[0].command: found an array, accepted: a string
p.toml:12:14: backends[0].args[1]: found 1, accepted: a string
p.toml:12:22: backends[0].args[3]: found true, accepted: a string
p.toml:15:13: backends[1].transport: found "carrier", accepted: "stdio" or "http" or "sse"
p.toml:16:1: backends[2].name: missing, and there is no default
p.toml:18:7: backends[2].url: found the scheme ftp, accepted: http[s]://host[:port]/path
p.toml:19:13: backends[2].headers.Host: not accepted: it follows from the url"#;
    assert_eq!(faults(text), expected);
}

#[test]
fn broken_syntax_does_not_hide_other_faults_nor_invent_any() {
    let text = "[proxy]\nname = \nwrokers = 1\n[proxy.listen]\nport = 1\nport = 2\n";
    assert_eq!(
        faults(text),
        "p.toml:2:8: not TOML: string values must be quoted, expected literal string\n\
         p.toml:3:1: proxy.wrokers: unknown key, did you mean `workers`?\n\
         p.toml:6:1: not TOML: duplicate key"
    );
    // A broken header takes the tables behind it along: nothing more can be said.
    assert_eq!(
        faults("[proxy\nname = 1\n[proxy.listen]\nprot = 1\n"),
        "p.toml:1:7: not TOML: unclosed table, expected `]`"
    );
    // In the order of the file, as all faults are.
    let several = faults("true\"\n[[proxy]\n[backends]]\n");
    let lines: Vec<&str> = several.lines().map(|line| &line[..8]).collect();
    assert!(lines.len() > 2 && lines.is_sorted(), "{several}");
}

#[test]
fn hints() {
    let wrong = |lines: &str| faults(&format!("{PROXY}{lines}\n"));
    for (lines, hint) in [
        ("bind = 1", "proxy.bind: unknown key, the right one is proxy.listen.host and"),
        ("port = 1", "proxy.port: unknown key here, it belongs into [proxy.listen]"),
        ("command = 1", "proxy.command: unknown key here, it belongs into [[backends]]"),
        ("no_such_thing = true", "proxy.no_such_thing: unknown key, accepted: name, ver"),
        ("[auth]", "auth.type: missing, and there is no default"),
        ("[servers]", "servers: unknown key, the right one is [[backends]]"),
        ("[backends]", "backends: found a table, accepted: an array of tables"),
        (
            "[[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'true'\ncmd = 'x'",
            "backends[0].cmd: unknown key, the right one is command",
        ),
        ("\"a b\" = 1", "proxy.\"a b\": unknown key"),
    ] {
        let found = wrong(lines);
        assert!(found.contains(hint) && found.lines().count() == 1, "{lines}: {found}");
    }
    for (_, found, right) in MOVED {
        assert_ne!(found, right);
    }
    for key in Root::keys().iter().chain(&BackendTable::keys()) {
        assert!(!MOVED.iter().any(|(of, from, _)| *of == "backends" && *from == key.name));
    }
}

#[test]
fn a_text_or_table_of_the_wrong_kind() {
    assert_eq!(faults(""), "p.toml:1:1: proxy: missing, and there is no default");
    // What could not be understood is not missed.
    let broken = faults("name = \n[proxy]\nname = \"x\"\n");
    assert!(broken.contains("p.toml:1:") && !broken.contains("proxy.name"), "{broken}");
    let broken = faults("[proxy\nname = \"x\"\n");
    assert!(broken.contains("p.toml:1:") && !broken.contains("proxy.name"), "{broken}");
    assert_eq!(faults("proxy = 1"), "p.toml:1:9: proxy: found 1, accepted: a table");
    assert!(faults("[proxy]\nname = 99999999999999999999").contains("beyond 64 bits"));
    assert!(faults("[proxy]\nname = 2020-01-01").contains("found a date, accepted: a string"));
    for bad in ["-1", "nan", "inf", "1e300", "''", "100000"] {
        let text = format!("{PROXY}shutdown_timeout_seconds = {bad}");
        assert!(faults(&text).contains("a number of seconds from 0 to 86400"), "{bad}");
    }
    let zero = "[[backends]]\nname='a'\ntransport='stdio'\ncommand='true'\ntimeout.seconds=0";
    assert!(faults(&format!("{PROXY}{zero}")).contains("timeout.seconds: found 0, accepted"));
}

#[test]
fn an_unset_variable_is_a_fault_with_a_place() {
    let fault = faults("[proxy]\nname = \"${UNSET}\"");
    assert!(fault.starts_with("p.toml:2:8: proxy.name: the env"), "{fault}");
}

#[test]
fn secrets_come_from_files_and_never_print() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "s3cret\n").unwrap();
    let world = World { folder: folder.path().to_owned(), ..world() };
    let text = |token: &str| {
        format!(
            "{PROXY}[[backends]]\nname='a'\ntransport='http'\nurl='http://h'\n\
             bearer_token={token}\n"
        )
    };
    let check = |token: &str| ProxyConfig::check("p.toml", &text(token), &world);
    let config = check("'file:token'").unwrap();
    let token = config.backends[0].table.bearer_token.clone().unwrap();
    assert_eq!(token.expose(), "s3cret");
    assert_eq!(format!("{token} {token:?}"), "*** ***");
    assert!(!format!("{config:?}").contains("s3cret"));
    assert_eq!(token.show().unwrap(), "\"***\"");
    // What a variable holds is a secret, not the name of a file.
    let config = check("'${FILE}'").unwrap();
    let token = config.backends[0].table.bearer_token.clone().unwrap();
    assert_eq!(token.expose(), "file:/etc/hostname");
    let missing = check("'file:nowhere'").unwrap_err().to_string();
    assert!(missing.contains("nowhere cannot be read"), "{missing}");
    // A fault about a secret does not quote it.
    for bad in ["123456", "'s3cret with blanks'", "['s3cret']"] {
        let fault = check(bad).unwrap_err().to_string();
        assert!(fault.contains("bearer_token"), "{fault}");
        assert!(!fault.contains("123456") && !fault.contains("s3cret"), "{fault}");
    }
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let missing = ProxyConfig::load(&path).unwrap_err().to_string();
    assert!(missing.contains("c.toml: cannot be read: No such file"), "{missing}");
    std::fs::write(&path, b"[proxy]\nname = \"\xff\"\n").unwrap();
    let binary = ProxyConfig::load(&path).unwrap_err().to_string();
    assert!(binary.ends_with("c.toml: not UTF-8 at byte 17"), "{binary}");
    std::fs::write(&path, PROXY).unwrap();
    assert_eq!(ProxyConfig::load(&path).unwrap().proxy.name, "p");
}

// proxy.toml is the manual: it must show every key, with the default that the code has and the
// words that the code's documentation has.

pub(in super::super) const SHIPPED: &str = include_str!("../../../proxy.toml");

/// Settings that are commented out, put in.
pub(in super::super) fn with_all_settings(text: &str) -> String {
    let is_setting = |line: &&str| {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c| !matches!(c, ' ' | ':')))
    };
    let lines = text.lines().map(|line| if is_setting(&line) { &line[1..] } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_loads_without_a_warning_but_that_tests_are_not_the_binary() {
    let config = ProxyConfig::parse(SHIPPED).unwrap();
    let warnings: Vec<_> =
        config.warnings().into_iter().filter(|w| w.path != "backends[0].command").collect();
    assert_eq!(warnings, Vec::<Diagnosis>::new());
    assert_eq!(config.backends.len(), 1);
    assert_eq!(config.backends[0].table.args, ["demo-server"]);
}

/// A default would be a token that everybody knows.
#[test]
fn no_token_of_the_shipped_file_has_a_default() {
    let text = with_all_settings(SHIPPED);
    let defaults: Vec<&str> = text.lines().filter(|line| line.contains("_TOKEN:-")).collect();
    assert_eq!(defaults, [r#"env = { DEMO_TOKEN = "${DEMO_TOKEN:-none}" }"#]);
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let text = with_all_settings(SHIPPED);
    let mut report = Report::default();
    // Not imported, as there is no such file.
    let without = text.replace("\nimport_backends", "\n#");
    let config = read("proxy.toml", &without, &world(), &mut report).unwrap();
    assert_eq!(report.to_string(), "");

    let document: toml::Table = text.parse().unwrap();
    let mut shown = 0;
    fn compare(path: &str, keys: Vec<KeyDoc>, tables: &[&toml::Table], shown: &mut usize) {
        for key in keys {
            let path = join(path, key.name);
            let values: Vec<&toml::Value> =
                tables.iter().filter_map(|table| table.get(key.name)).collect();
            assert!(!values.is_empty(), "proxy.toml does not show {path}");
            *shown += 1;
            let inner = (key.table)();
            if !inner.is_empty() {
                let tables: Vec<&toml::Table> = values
                    .iter()
                    .flat_map(|value| match value {
                        toml::Value::Array(tables) => tables.iter().collect(),
                        one => vec![*one],
                    })
                    .map(|value| value.as_table().unwrap())
                    .collect();
                compare(&path, inner, &tables, shown);
            } else if let (Some(default), false) = (&key.default, key.needed) {
                let default: toml::Table = format!("x = {default}").parse().unwrap();
                // Examples beside an empty default, and beside the first backend's transport.
                let is_empty = matches!(&default["x"], toml::Value::Array(a) if a.is_empty())
                    || matches!(&default["x"], toml::Value::Table(t) if t.is_empty());
                assert!(
                    is_empty || values.contains(&&default["x"]),
                    "proxy.toml shows {path} = {values:?}, the default is {default}"
                );
            }
        }
    }
    compare("", Root::keys(), &[&document], &mut shown);
    assert!(shown > 40, "{shown} keys compared");
    assert_eq!(config.backends.len(), 4);
}

#[test]
fn the_shipped_file_says_what_the_code_says() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let comments: Vec<&str> = SHIPPED.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    let comments = words(&comments.join(" "));
    fn walk(path: &str, keys: Vec<KeyDoc>, check: &mut dyn FnMut(&str, &KeyDoc)) {
        for key in keys {
            let path = join(path, key.name);
            check(&path, &key);
            walk(&path, (key.table)(), check);
        }
    }
    walk("", Root::keys(), &mut |path, key| {
        assert!(!key.accepts.is_empty());
        // The two headings are worded for the place where they stand.
        if !matches!(path, "proxy" | "backends") {
            let manual = words(&key.manual.concat());
            assert!(comments.contains(&manual), "proxy.toml does not say of {path}: {manual}");
        }
    });
}
