//! `mcp-proxy config schema`: a validator that is not ours says of files what the proxy says.

use std::process::Command;

use boon::{Compiler, SchemaIndex, Schemas};

/// The schema that the binary prints.
fn schema() -> (Schemas, SchemaIndex) {
    let run = Command::new(env!("CARGO_BIN_EXE_mcp-proxy")).args(["config", "schema"]).output();
    let run = run.expect("run");
    assert!(run.status.success());
    let schema = serde_json::from_slice(&run.stdout).expect("JSON");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("file:///schema.json", schema).expect("a resource");
    let index = compiler.compile("file:///schema.json", &mut schemas);
    (schemas, index.expect("a schema of draft 2020-12"))
}

/// What the schema says of a file.
fn verdict((schemas, index): &(Schemas, SchemaIndex), text: &str) -> Result<(), String> {
    let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
    let document = serde_json::to_value(table).expect("JSON");
    schemas.validate(&document, *index).map_err(|error| format!("{error}"))
}

const PROXY: &str = "[proxy]\nname = \"p\"\n";

#[test]
fn what_is_right_passes() {
    let schema = schema();
    let root = env!("CARGO_MANIFEST_DIR");
    let shipped = std::fs::read_to_string(format!("{root}/proxy.toml")).unwrap();
    let readme = std::fs::read_to_string(format!("{root}/README.md")).unwrap();
    let shown: Vec<String> = readme
        .split("```toml\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .map(|block| match block.contains("[proxy]") {
            true => block.to_owned(),
            false => format!("{PROXY}{block}"),
        })
        .collect();
    assert!(shown.len() >= 3);
    // What configurations of this kind have always looked like.
    let known = [
        "[proxy]\nname='p'\nseparator='/'\n[proxy.listen]\nhost='127.0.0.1'\nport=8080\n\
         [[backends]]\nname='files'\ntransport='stdio'\ncommand='npx'\nargs=['-y','x','/tmp']\n\
         expose_tools=['read_file']\n",
        "[proxy]\nname='p'\n[[backends]]\nname='github'\ntransport='stdio'\ncommand='npx'\n\
         [backends.env]\nTOKEN='${GITHUB_TOKEN}'\n[backends.timeout]\nseconds=60\n\
         [backends.rate_limit]\nrequests=30\nperiod_seconds=1\n\
         [backends.circuit_breaker]\nfailure_rate_threshold=0.5\nminimum_calls=5\n\
         wait_duration_seconds=30\n[backends.retry]\nmax_retries=3\ninitial_backoff_ms=100\n\
         max_backoff_ms=5000\nbudget_percent=20.0\n[backends.hedging]\ndelay_ms=200\nmax_hedges=1\n\
         [backends.outlier_detection]\nconsecutive_errors=5\nbase_ejection_seconds=30\n\
         max_ejection_percent=50\n[backends.cache]\ntool_ttl_seconds=60\nresource_ttl_seconds=300\n",
        "[proxy]\nname='p'\n[[backends]]\nname='db'\ntransport='http'\nurl='http://db:8080'\n\
         [backends.default_args]\ntimeout=30\n[[backends.inject_args]]\ntool='query'\n\
         args={read_only=true,max_rows=1000}\n[[backends.inject_args]]\ntool='op'\n\
         args={dry_run=true}\noverwrite=true\n",
        "[proxy]\nname='p'\n[[backends]]\nname='api'\ntransport='http'\nurl='http://a:1'\n\
         [[backends]]\nname='b'\ntransport='http'\nurl='http://b:1'\nmirror_of='api'\n\
         mirror_percent=10\n",
        "[proxy]\nname='p'\n[auth]\ntype='bearer'\ntokens=['t']\n",
        "[proxy]\nname='p'\n[auth]\ntype='jwt'\nissuer='https://i'\naudience='a'\n\
         jwks_uri='https://i/k'\n[[auth.roles]]\nname='reader'\nallow_tools=['files/read_file']\n\
         [[auth.roles]]\nname='admin'\n[auth.role_mapping]\nclaim='scope'\n\
         mapping={'mcp:read'='reader','mcp:admin'='admin'}\n",
    ];
    let all = std::iter::once(shipped).chain(shown).chain(known.map(str::to_owned));
    for text in all {
        verdict(&schema, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn what_is_wrong_fails_as_it_does_in_the_proxy() {
    let schema = schema();
    let backend = "[[backends]]\nname='a'\ntransport='stdio'\ncommand='c'\n";
    for wrong in [
        String::new(),
        "[proxy]\n".to_owned(),
        "[proxy]\nname = 1\n".to_owned(),
        format!("{PROXY}nmae = 'x'\n"),
        format!("{PROXY}workers = 0\n"),
        format!("{PROXY}workers = 1.5\n"),
        format!("{PROXY}[listen]\n"),
        format!("{PROXY}[proxy.listen]\nport = 70000\n"),
        format!("{PROXY}[backends]\nname = 'a'\n"),
        format!("{PROXY}[[backends]]\nname = 'a'\n"),
        format!("{PROXY}{backend}args = 'x'\n"),
        format!("{PROXY}{backend}[backends.timeout]\nseconds = 0\n"),
        format!("{PROXY}{backend}[backends.cache]\nscope = 'all'\n"),
        format!("{PROXY}{backend}[backends.restart]\ngive_up_after = 'always'\n"),
        format!("{PROXY}{backend}[[backends.aliases]]\nfrom = 'x'\n"),
        format!("{PROXY}[auth]\ntype = 'basic'\n"),
        format!("{PROXY}[observability]\naudit = 1\n"),
    ] {
        assert!(verdict(&schema, &wrong).is_err(), "{wrong}");
        assert!(mcp_proxy::ProxyConfig::parse(&wrong).is_err(), "{wrong}");
    }
    // What stands for something else is left to the proxy.
    let later = format!("{PROXY}{}", backend.replace("'stdio'", "'${TRANSPORT}'"));
    verdict(&schema, &later).unwrap();
}
