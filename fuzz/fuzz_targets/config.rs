//! Laws of the configuration:
//! - whatever it is, it is taken or refused with at least one fault, each at a place that is in the
//!   text, in the order of the text, in words;
//! - what is in force, written out, is read again as the same;
//! - no secret shows: neither in what is in force, nor in a fault, nor in what is printed of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_proxy::{ProxyConfig, Report};

const SECRET: &str = "s3cr3t-0f-0perat0rs";

/// With secrets in every place that has some, before what the fuzzer writes.
const KEPT: &str = r#"
[proxy]
name = "p"
[security]
admin_token = "s3cr3t-0f-0perat0rs"
[auth]
type = "bearer"
tokens = ["s3cr3t-0f-0perat0rs.2"]
[[backends]]
name = "kept"
transport = "http"
url = "http://localhost/mcp"
bearer_token = "s3cr3t-0f-0perat0rs.3"
headers = { X-Key = "s3cr3t-0f-0perat0rs.4" }
[[backends]]
name = "child"
transport = "stdio"
command = "true"
env = { KEY = "s3cr3t-0f-0perat0rs.5" }
"#;

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    // Files that are no files, and the answers of this machine, are not what is asked.
    if ["/dev", "/proc", "/sys", "${", "file:"].iter().any(|word| text.contains(word)) {
        return;
    }
    match kind & 1 {
        0 => check(text),
        _ => {
            check(&format!("{KEPT}{text}"));
            // In the midst of it, too.
            let lines = KEPT.split_inclusive('\n');
            let at = usize::from(kind >> 1) % lines.clone().count();
            let mut parts: Vec<&str> = lines.collect();
            parts.insert(at, text);
            parts.insert(at + 1, "\n");
            check(&parts.concat());
        }
    }
});

fn check(text: &str) {
    match ProxyConfig::parse(text) {
        Err(report) => faults(text, &report),
        Ok(config) => {
            let shown = config.effective();
            secrets(text, &[&shown, &format!("{config:?}")]);
            secrets(text, &[&config.warnings().iter().map(|w| w.to_string()).collect::<String>()]);
            match ProxyConfig::parse(&shown) {
                Ok(again) => assert_eq!(again.effective(), shown),
                Err(report) => {
                    // Where several secrets are shown alike, they are alike.
                    let twice = shown.matches("***").count() > 1;
                    assert!(twice, "{report}\n{shown}");
                }
            }
        }
    }
}

fn faults(text: &str, report: &Report) {
    assert!(!report.faults.is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    for fault in &report.faults {
        let (line, column) = (fault.place.line as usize, fault.place.column as usize);
        assert!(line <= lines.len(), "{fault}");
        if line > 0 {
            // One behind the last, and one more for a line end.
            assert!((1..=lines[line - 1].chars().count() + 2).contains(&column), "{fault}");
        }
        assert!(!fault.message.is_empty());
    }
    assert!(report.faults.is_sorted_by_key(|fault| &fault.place));
    secrets(text, &[&report.to_string(), &format!("{report:?}")]);
}

/// The secrets stand where secrets stand, unless the rest of the text has moved them.
fn secrets(text: &str, shown: &[&str]) {
    if !text.contains(KEPT) {
        return;
    }
    for shown in shown {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
