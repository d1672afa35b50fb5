//! Owns: the tests of plans: what they say, and what is refused.
//! Never: the files of a configuration.
//! Next: nothing.

use super::super::setting::{EnvValue, Inherit, Secret};
use super::*;

/// The plan of a text, its warnings, or its faults, one a line.
fn compiled(text: &str) -> Result<(Plan, Vec<String>), String> {
    let config = ProxyConfig::parse(text).map_err(|report| report.to_string())?;
    let mut report = Report::default();
    let plan = compile(&config, &mut report).expect("parsing has compiled it before");
    Ok((plan, config.warnings().iter().map(ToString::to_string).collect()))
}

fn proxy(lines: &str) -> Result<(Plan, Vec<String>), String> {
    compiled(&format!("[proxy]\nname = 'p'\n{lines}\n"))
}

fn stdio(name: &str, lines: &str) -> String {
    format!("[[backends]]\nname='{name}'\ntransport='stdio'\ncommand='true'\n{lines}\n")
}

fn http(url: &str, lines: &str) -> String {
    format!("[[backends]]\nname='web'\ntransport='http'\nurl='{url}'\n{lines}\n")
}

fn http_plan(url: &str, lines: &str) -> HttpPlan {
    let (plan, _) = proxy(&http(url, lines)).unwrap();
    let backend = Arc::into_inner(plan.backends.into_all().remove(0)).unwrap();
    match backend.transport {
        TransportPlan::Http(plan) => plan,
        TransportPlan::Stdio(_) => panic!("stdio"),
    }
}

#[track_caller]
fn refuses(text: &str, part: &str) {
    match proxy(text) {
        Err(faults) => {
            assert!(faults.contains(part), "{text}\n{faults}");
            assert_eq!(faults.lines().count(), 1, "{text}\n{faults}");
        }
        Ok(_) => panic!("accepted: {text}"),
    }
}

#[test]
fn defaults() {
    let (plan, warnings) = proxy(&(stdio("a", "") + &http("http://h", ""))).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(&*plan.name, "p");
    assert_eq!(&*plan.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(plan.separator, "__");
    assert!(plan.workers >= 1);
    assert_eq!(plan.listen.addr, "127.0.0.1:8080".parse().unwrap());
    assert!(matches!(plan.listen.origins, OriginRule::Loopback));
    assert!(matches!(plan.listen.hosts, HostRule::Loopback));
    let all = plan.backends.into_all();
    let [a, web] = &all[..] else { panic!("two backends") };
    assert_eq!((a.id, &*a.name, a.prefix.as_str()), (0, "a", "a__"));
    assert_eq!((web.id, &*web.name, web.prefix.as_str()), (1, "web", "web__"));
    assert_eq!((a.isolation, web.isolation), (Isolation::Shared, Isolation::Session));
    assert_eq!(a.call_timeout, limits::CALL_TIMEOUT);
    assert_eq!(a.request_timeout, limits::REQUEST_TIMEOUT);
    assert_eq!(a.restart.give_up_after, None);
}

#[test]
fn a_disabled_backend_is_checked_and_left_out() {
    let text = stdio("a", "enabled=false") + &stdio("b", "timeout.seconds=2");
    let (plan, _) = proxy(&text).unwrap();
    assert_eq!(plan.backends.len(), 1);
    assert_eq!((plan.backends[0].id, &*plan.backends[0].name), (0, "b"));
    assert_eq!(plan.backends[0].call_timeout.as_secs(), 2);
    assert_eq!(plan.backends[0].request_timeout.as_secs(), 2);
    refuses(&stdio("a", "enabled=false\nurl='x'"), "backends[0].url: not accepted with");
    let (_, warnings) = proxy(&stdio("a", "enabled=false")).unwrap();
    assert!(warnings[0].contains("no backend is enabled"), "{warnings:?}");
}

#[test]
fn names_and_prefixes() {
    refuses(&stdio("", ""), "backends[0].name: found an empty string");
    refuses(&stdio("a b", ""), "backends[0].name: found \"a b\", accepted: A-Z");
    refuses(&stdio("ä", ""), "accepted: A-Z");
    refuses(&stdio("proxy", ""), "which is the proxy itself");
    refuses(&stdio("a__b", ""), "without the separator \"__\"");
    refuses(&stdio(&"x".repeat(65), ""), "found 65 characters");
    refuses(&stdio("a", "prefix='b/c'"), "backends[0].prefix: found \"b/c\"");
    refuses(&stdio("a", "prefix='proxy'"), "backends[0].prefix: found \"proxy\"");
    let twice = stdio("a", "") + &stdio("a", "prefix='b'");
    refuses(
        &twice,
        "proxy.toml:9:6: backends[1].name: \"a\" is the name of another backend (proxy.toml:3:1)",
    );
    refuses(&(stdio("a", "") + &stdio("b", "prefix='a'")), "backends[1].prefix: names would begin");
    refuses(&(stdio("a_", "") + &stdio("a", "")), "backends[1].name: names would begin");
    refuses(&(stdio("a", "") + &stdio("a_", "")), "of which none begins another");
    let (plan, _) =
        proxy(&(stdio("a", "prefix=''") + &stdio("b", "prefix=''") + &stdio("c", ""))).unwrap();
    let prefixes: Vec<&str> = plan.backends.iter().map(|b| b.prefix.as_str()).collect();
    assert_eq!(prefixes, ["", "", "c__"]);
    // A disabled backend claims no names.
    proxy(&(stdio("a", "enabled=false") + &stdio("b", "prefix='a'"))).unwrap();
}

#[test]
fn separators() {
    refuses("separator=''", "proxy.separator: found 0 characters");
    refuses("separator='123456789'", "found 9 characters");
    refuses("separator='\"'", "proxy.separator: accepted: visible ASCII");
    refuses("separator='a b'", "visible ASCII");
    refuses("separator='é'", "visible ASCII");
    let warned = |text: &str| proxy(text).unwrap().1.join("\n");
    let slash = format!("separator='/'\n{}", stdio("a", ""));
    assert!(warned(&slash).contains("\"/\" leaves A-Za-z0-9_-"), "{}", warned(&slash));
    assert!(warned(&stdio("a.b", "")).contains("\"a.b\" leaves A-Za-z0-9_-"));
    let long = "x".repeat(40);
    assert!(warned(&stdio(&long, "")).contains("leaves 22 of the 64 characters"));
    assert_eq!(warned(&stdio(&long, "prefix='x'")), "");
    refuses("version=' '", "proxy.version: found an empty string");
    refuses("version=\"a\\u0007\"", "proxy.version: found a control character");
}

#[test]
fn listening() {
    let listen = |lines: &str| proxy(&format!("{}[proxy.listen]\n{lines}\n", ""));
    let addr = |lines: &str| listen(lines).unwrap().0.listen.addr.to_string();
    assert_eq!(addr("host='localhost'\nport=0"), "127.0.0.1:0");
    assert_eq!(addr("host='::1'\nport=9"), "[::1]:9");
    assert_eq!(addr("host='[::1]'"), "[::1]:8080");
    refuses("[proxy.listen]\nhost='example.com'", "proxy.listen.host: found \"example.com\"");
    refuses("[proxy.listen]\nhost=''", "proxy.listen.host: found \"\"");
    let (plan, warnings) = listen("host='0.0.0.0'").unwrap();
    assert!(warnings.iter().any(|w| w.contains("no authentication")), "{warnings:?}");
    assert!(matches!(plan.listen.origins, OriginRule::Listed(list) if list.is_empty()));
    assert!(matches!(plan.listen.hosts, HostRule::Any));
    let (plan, _) = listen(
        "allowed_origins=['HTTPS://A.example:443','http://[::1]:3000','app://x']\n\
         allowed_hosts=['A.example','b:8080']",
    )
    .unwrap();
    let OriginRule::Listed(origins) = plan.listen.origins else { panic!("listed") };
    assert_eq!(origins, ["https://a.example", "http://[::1]:3000", "app://x"]);
    let HostRule::Listed(hosts) = plan.listen.hosts else { panic!("listed") };
    assert_eq!(hosts, ["a.example", "b:8080"]);
    for bad in
        ["*", "null", "http://", "http://a/", "a.example", "http://a:0", "http://a:99999", "://a"]
    {
        let text = format!("[proxy.listen]\nallowed_origins=['http://ok', '{bad}']");
        refuses(
            &text,
            &format!("proxy.toml:4:31: proxy.listen.allowed_origins[1]: found \"{bad}\""),
        );
    }
    for bad in ["*", "", "a:", "a/b", "::1", "http://a"] {
        refuses(&format!("[proxy.listen]\nallowed_hosts=['{bad}']"), "allowed_hosts[0]: found");
    }
}

#[test]
fn keys_of_the_other_transport() {
    refuses(
        &stdio("a", "url='http://h'"),
        "backends[0].url: not accepted with transport = \"stdio\"",
    );
    refuses(&stdio("a", "headers={A='b'}"), "backends[0].headers: not accepted");
    refuses(&http("http://h", "env={A='b'}"), "backends[0].env: not accepted");
    refuses(
        &http("http://h", "[backends.tls]\nca='x'"),
        "backends[0].tls: not accepted with an http url",
    );
    refuses("[[backends]]\nname='a'\ntransport='stdio'", "backends[0].command: missing");
    refuses(&http("http://h", "max_children=3"), "backends[0].max_children: not accepted");
    refuses(
        "[[backends]]\nname='a'\ntransport='sse'\nurl='http://h'\ncommand='c'",
        "backends[0].command: not accepted with transport = \"sse\"",
    );
    refuses("[[backends]]\nname='a'\ntransport='sse'", "backends[0].url: missing");
    refuses(
        "[[backends]]\nname='a'\ntransport='sse'\nurl='http://h'\nprotocol='modern'",
        "backends[0].protocol: \"modern\" is not spoken over event streams",
    );
    refuses("[[backends]]\nname='a'\ntransport='http'", "backends[0].url: missing");
    refuses("[[backends]]\nname='a'\nurl='x'", "backends[0].transport: missing");
}

#[test]
fn streams_of_the_older_transport_are_bounded_as_children_are() {
    let plan = |lines: &str| {
        let text = format!("[[backends]]\nname='a'\ntransport='sse'\nurl='http://h/sse'\n{lines}");
        let (plan, _) = proxy(&text).unwrap();
        let backend = Arc::into_inner(plan.backends.into_all().remove(0)).unwrap();
        assert_eq!(backend.isolation, Isolation::Session);
        match backend.transport {
            TransportPlan::Http(plan) => plan,
            TransportPlan::Stdio(_) => panic!("stdio"),
        }
    };
    let sse = plan("max_children=3\nidle_stop_seconds=7\nbearer_token='t'\nheaders={A='b'}");
    let wanted =
        SsePlan { only: true, streams_max: 3, idle_stop: std::time::Duration::from_secs(7) };
    assert_eq!((sse.sse, sse.target.as_str()), (wanted, "/sse"));
    assert_eq!(sse.header_lines, "A: b\r\nAuthorization: Bearer t\r\n");
    assert_eq!(plan("").sse.streams_max, limits::SSE_STREAMS_MAX);
    assert!(!http_plan("http://h/sse", "").sse.only);
}

#[test]
fn urls() {
    let parse =
        |text: &str| Url::parse(text).map(|url| (url.authority(), url.host, url.port, url.target));
    let url = |authority: &str, host: &str, port, target: &str| {
        Ok((authority.to_owned(), host.to_owned(), port, target.to_owned()))
    };
    assert_eq!(parse("http://h"), url("h", "h", 80, "/"));
    assert_eq!(parse("HTTPS://H.Example:443/mcp"), url("h.example", "h.example", 443, "/mcp"));
    assert_eq!(parse("https://h:80?a=b%20c"), url("h:80", "h", 80, "/?a=b%20c"));
    assert_eq!(parse("http://[::1]:8080/a"), url("[::1]:8080", "::1", 8080, "/a"));
    assert_eq!(
        parse("http://my_service.internal./x"),
        url("my_service.internal.", "my_service.internal.", 80, "/x")
    );
    assert_eq!(parse("http://127.0.0.1:1/"), url("127.0.0.1:1", "127.0.0.1", 1, "/"));
    for bad in [
        "",
        "h",
        "h:80",
        "//h",
        "ftp://h",
        "http:h",
        "http://",
        "http:///x",
        "http://:80",
        "http://h:",
        "http://h:x",
        "http://h:0",
        "http://h:65536",
        "http://h:+1",
        "http://u@h",
        "http://u:p@h",
        "http://h#f",
        "http://h/a b",
        "http://h/ä",
        "http://ä",
        "http://h/%",
        "http://h/%2",
        "http://h/%zz",
        "http://[::1",
        "http://[::g]",
        "http://::1",
        "http://a..b",
        "http://1.2.3",
        "http://1.2.3.4.5",
        "http://256.1.1.1",
        "http://h\\x",
        "http://h\r\n/x",
        " http://h",
        "http://h/{x}",
        "http://-/\n",
    ] {
        assert!(Url::parse(bad).is_err(), "{bad}");
    }
    refuses(&http("http://u:s3cret@h", ""), "backends[0].url: found a user name");
    let faults = proxy(&http("http://u:s3cret@h", "")).unwrap_err();
    assert!(!faults.contains("s3cret"));
}

#[test]
fn header_lines() {
    let plan = http_plan("http://h/x", "bearer_token='t'\nheaders={X-B='1', X-a='two words'}");
    assert_eq!(plan.header_lines, "X-B: 1\r\nX-a: two words\r\nAuthorization: Bearer t\r\n");
    assert!(!format!("{plan:?}").contains("Bearer"));
    for bad in [
        "Host",
        "connection",
        "Keep-Alive",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Expect",
        "Content-Length",
        "content-type",
        "Content-Anything",
        "Mcp-Session-Id",
        "MCP-Protocol-Version",
        "Accept",
        "Last-Event-ID",
    ] {
        let text = http("http://h", &format!("headers={{\"{bad}\"='x'}}"));
        refuses(&text, &format!("backends[0].headers.{bad}: not accepted"));
    }
    for bad in ["", "a b", "a:", "ä", "a\\r\\nb"] {
        refuses(
            &http("http://h", &format!("headers={{\"{bad}\"='x'}}")),
            "accepted: a header name",
        );
    }
    for bad in ["a\\r\\nX-Evil: 1", "a\\u0000", "ä", " a", "a\\t"] {
        refuses(
            &http("http://h", &format!("headers={{A=\"{bad}\"}}")),
            "backends[0].headers.A: found",
        );
    }
    refuses(&http("http://h", "headers={A='1', a='2'}"), "there twice");
    refuses(
        &http("http://h", "bearer_token='t'\nheaders={authorization='x'}"),
        "bearer_token is set too",
    );
    for bad in ["", "a b", "a\\n"] {
        refuses(&http("http://h", &format!("bearer_token=\"{bad}\"")), "visible ASCII");
    }
}

#[test]
fn a_token_without_encryption_is_warned_about() {
    let warnings = |url: &str| proxy(&http(url, "bearer_token='t'")).unwrap().1;
    assert!(warnings("http://h")[0].contains("sent without encryption"));
    assert_eq!(warnings("http://127.0.0.1:1"), Vec::<String>::new());
    assert_eq!(warnings("http://localhost"), Vec::<String>::new());
}

#[test]
fn the_fingerprint_tells_what_changed() {
    let base = || http_plan("http://h/x", "headers={A='1'}");
    assert_eq!(base(), base());
    for (url, lines) in [
        ("http://h/y", "headers={A='1'}"),
        ("http://h:81/x", "headers={A='1'}"),
        ("http://h/x", "headers={A='2'}"),
        ("http://h/x", "headers={A='1'}\nidle_seconds=1"),
        ("http://h/x", "headers={A='1'}\nmax_connections=1"),
    ] {
        assert_ne!(base(), http_plan(url, lines), "{url} {lines}");
    }
}

#[test]
fn children() {
    let config = BackendTable::default();
    let own = || {
        [("PATH", "/bin"), ("LC_ALL", "C"), ("LCX", "no"), ("AWS_SECRET", "no"), ("A", "own")]
            .map(|(name, value)| (name.into(), value.into()))
            .into_iter()
    };
    let names = |table: &BackendTable| {
        environment(table, own()).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(names(&config), ["LC_ALL", "PATH"]);
    let all = BackendTable { inherit_env: Inherit::All, ..config.clone() };
    assert_eq!(names(&all).len(), 5);
    let some = Inherit::Names(vec!["A*".to_owned()]);
    let mut some = BackendTable { inherit_env: some, ..config };
    assert_eq!(names(&some), ["A", "AWS_SECRET"]);
    some.env.insert("A".to_owned(), EnvValue(Secret("set".to_owned())));
    assert!(environment(&some, own()).contains(&("A".to_owned(), "set".to_owned())));

    refuses(
        &stdio("a", "inherit_env=['A', 'F*O']"),
        "backends[0].inherit_env[1]: found \"F*O\", accepted: a name, with a * at its end only",
    );
    refuses(&stdio("a", "inherit_env=['**']"), "backends[0].inherit_env[0]: found \"**\"");
    refuses(&stdio("a", "env={\"a=b\"='x'}"), "backends[0].env: found the variable name \"a=b\"");
    refuses(&stdio("a", "env={A=\"\\u0000\"}"), "backends[0].env.A: found a NUL");
    refuses(&stdio("a", "args=['x', \"\\u0000\"]"), "backends[0].args[1]: found a NUL");
    let missing = "[[backends]]\nname='a'\ntransport='stdio'\ncommand='no-such-program-x'";
    let (plan, warnings) = proxy(missing).unwrap();
    assert!(warnings[0].contains("there is no program \"no-such-program-x\" now"));
    assert_eq!(plan.backends.len(), 1);
    let (_, warnings) = proxy(&stdio("a", "cwd='/no/such/folder'")).unwrap();
    assert!(warnings[0].contains("there is no folder /no/such/folder"));
    // Environments carry tokens: they must not end in a log.
    let (plan, _) = proxy(&stdio("a", "env={TOKEN='s3cret'}")).unwrap();
    assert!(!format!("{plan:?}").contains("s3cret"));
}

#[test]
fn pauses() {
    refuses(
        &stdio("a", "restart={initial_ms=2, max_ms=1}"),
        "backends[0].restart.max_ms: initial_ms is 2",
    );
    refuses(
        &stdio("a", "restart={initial_ms=60000}"),
        "backends[0].restart.initial_ms: initial_ms is 60000",
    );
    let (plan, _) =
        proxy(&stdio("a", "restart={initial_ms=2, max_ms=2, give_up_after=3}")).unwrap();
    assert_eq!(plan.backends[0].restart.give_up_after, Some(3));
}

#[test]
fn tls_clients() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let own = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap();
    std::fs::write(file("cert.pem"), own.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), own.signing_key.serialize_pem()).unwrap();
    std::fs::write(file("junk.pem"), "junk").unwrap();
    let tls = |lines: &str| http("https://h", &format!("[backends.tls]\n{lines}"));
    let (cert, key) = (file("cert.pem"), file("key.pem"));

    let whole = format!("ca='{cert}'\ncert='{cert}'\nkey='{key}'");
    let plan = http_plan("https://h", &format!("[backends.tls]\n{whole}"));
    let client = plan.tls.clone().unwrap();
    assert_eq!(client.alpn_protocols, [b"http/1.1"]);
    assert!(client.client_auth_cert_resolver.has_certs());
    // One client for equal settings, so that sessions are resumed.
    let again = http_plan("https://h", &format!("[backends.tls]\n{whole}"));
    assert!(Arc::ptr_eq(&client, &again.tls.unwrap()));
    // The content of the files is what counts, not their names.
    let other = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap();
    std::fs::write(file("cert2.pem"), other.cert.pem()).unwrap();
    let changed = http_plan("https://h", &format!("[backends.tls]\nca='{}'", file("cert2.pem")));
    assert!(!Arc::ptr_eq(&client, changed.tls.as_ref().unwrap()));
    assert_ne!(plan.fingerprint, changed.fingerprint);

    refuses(
        &tls("ca='/no/such/file'"),
        "backends[0].tls.ca: the file /no/such/file cannot be read",
    );
    refuses(
        &tls(&format!("ca='{}'", file("junk.pem"))),
        "backends[0].tls.ca: unusable certificate authority: no certificate in",
    );
    refuses(&tls(&format!("cert='{cert}'")), "backends[0].tls.cert: set without key");
    refuses(&tls(&format!("key='{key}'")), "backends[0].tls.key: set without cert");
    refuses(
        &tls(&format!("cert='{cert}'\nkey='{cert}'")),
        "backends[0].tls.cert: unusable certificate or key: key: ",
    );
    let mixed = format!("cert='{}'\nkey='{key}'\nca='{cert}'", file("cert2.pem"));
    refuses(&tls(&mixed), "backends[0].tls.cert: unusable certificate or key");
    let (_, warnings) = proxy(&tls("insecure_skip_verify=true")).unwrap();
    assert!(warnings[0].contains("backends[0].tls.insecure_skip_verify: any certificate"));
    refuses(&tls(&format!("insecure_skip_verify=true\nca='{cert}'")), "accepted: one of them");
}
