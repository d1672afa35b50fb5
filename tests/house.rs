//! The house rules that a compiler does not hold: who imports whom, where `unsafe` and the
//! runtime may be named, and what ARCHITECTURE.md and README.md say about the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::scratch;
use crate::support::tls::Authority;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            out.push(path);
        }
    }
}

fn source_files() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// The part of a file before its unit tests, without comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Reads the import table of ARCHITECTURE.md: `| module | may import |`.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## Imports").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut table = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next().unwrap().trim_matches('`').to_owned();
        let may = cells.next().unwrap().split([',', ' ']).map(|cell| cell.trim_matches('`'));
        table.insert(name, may.filter(|cell| !cell.is_empty()).map(str::to_owned).collect());
    }
    assert!(table.len() > 10, "the import table was not found");
    table
}

/// The modules that follow `crate::`, also those in braces behind it.
fn imported(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let parts = list.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0 || (depth == 0 && c == ',')
        });
        // What stands behind the closing brace belongs to the next statement.
        let end = closing(list);
        let mut at = 0;
        for part in parts {
            if at <= end {
                found.insert(word(part));
            }
            at += part.len() + 1;
        }
    }
    found.remove("");
    found
}

/// Where the brace that was opened before `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    text.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0
    })
    .unwrap_or(text.len())
}

#[test]
fn imports_are_found_in_braces_too() {
    let code = "use crate::{a::{x, y}, b};\nuse crate::c::d;\nfn f() { crate::e::g(h, i) }";
    let found: Vec<String> = imported(code).into_iter().collect();
    assert_eq!(found, ["a", "b", "c", "e"]);
}

#[test]
fn imports_follow_the_table() {
    let table = table();
    let mut faults = Vec::new();
    for (name, text) in source_files() {
        let module = name.split('/').next().unwrap().trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(may) = table.get(module) else {
            faults.push(format!("src/{name}: module `{module}` is not in ARCHITECTURE.md's table"));
            continue;
        };
        for used in imported(&code(&text)) {
            if used != module && used != "bug" && !may.contains(&used) {
                faults.push(format!("src/{name}: `{module}` imports `{used}`"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_runtime_and_unsafe_have_one_place() {
    let mut faults = Vec::new();
    for (name, text) in source_files() {
        let code = code(&text);
        let mentions = |word: &str| {
            code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
        };
        if !name.starts_with("rt/") && (mentions("monoio") || mentions("io_uring")) {
            faults.push(format!("src/{name} names the runtime"));
        }
        if name != "rt/sys.rs" && mentions("unsafe") {
            faults.push(format!("src/{name} has unsafe code"));
        }
        if name == "rt/sys.rs" {
            let blocks = code.matches("unsafe {").count() + code.matches("unsafe impl").count();
            let reasons = text.matches("SAFETY").count();
            if reasons < blocks {
                faults.push(format!("src/{name}: {blocks} unsafe blocks, {reasons} reasons"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_module_says_what_it_owns() {
    let mut faults = Vec::new();
    for (name, text) in source_files() {
        if name == "lib.rs" || name == "main.rs" {
            continue;
        }
        for word in ["//! Owns:", "//! Never:", "//! Next:"] {
            if !text.contains(word) {
                faults.push(format!("src/{name} has no `{word}`"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The module that a `Next:` line names, as seen from another one: a child of it, a sibling, or a
/// sibling of one that it stands in.
fn resolved<'a>(from: &str, name: &str, all: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let mut folder = Some(from);
    while let Some(at) = folder {
        let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        if let Some((found, _)) = all.get_key_value(&path) {
            return Some(found);
        }
        folder = (!at.is_empty()).then(|| at.rsplit_once('/').map_or("", |(above, _)| above));
    }
    None
}

/// Who reads a module and then the next one that it names, from `limits` on, has read all of them,
/// each once.
#[test]
fn the_modules_can_be_read_in_one_line() {
    let is_module = |name: &str| !matches!(name, "lib" | "main") && !name.contains("tests");
    let all: BTreeMap<String, String> = source_files()
        .into_iter()
        .map(|(file, text)| {
            let name = file.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
            let next = text.lines().find_map(|line| line.strip_prefix("//! Next: "));
            (name, next.unwrap_or_default().to_owned())
        })
        .filter(|(name, _)| is_module(name))
        .collect();
    let mut left: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    let mut at = "limits";
    loop {
        assert!(left.remove(at), "`{at}` is the next of two");
        let line = &all[at];
        let Some(name) = line.strip_prefix('`').and_then(|rest| rest.split('`').next()) else {
            break;
        };
        at = resolved(at, name, &all).unwrap_or_else(|| panic!("{at}: no `{name}`"));
    }
    assert!(left.is_empty(), "the line ends with `{at}`, without {left:?}");
}

/// The map of ARCHITECTURE.md and `src/lib.rs` tell one story.
#[test]
fn the_map_is_in_the_order_of_the_modules() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let map = text.split("## Map").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `src/"));
    let name = |row: &str| row.split(['`', '/', '.']).next().unwrap().to_owned();
    let shown: Vec<String> = rows.map(name).skip_while(|name| name != "limits").collect();
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    assert_eq!(shown, modules.map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn every_dependency_has_its_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut before = "";
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") && line.contains(" = ") {
            // A reason may stand above several that belong together.
            assert!(before.starts_with('#') || before.contains(" = "), "no reason above: {line}");
        }
        before = line;
    }
}

#[test]
fn the_readme_has_the_table_of_errors() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let table = mcp_proxy::error::table();
    assert!(readme.contains(&table), "README.md must contain:\n{table}");
}

/// What README.md shows of embedding are programs that tests run.
#[test]
fn the_programs_of_the_readme_are_examples() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```rust\n").skip(1).collect();
    assert_eq!(blocks.len(), 2);
    for (block, example) in blocks.iter().zip(["embed", "axum_app"]) {
        let shown = block.split("```").next().unwrap();
        let source = fs::read_to_string(root().join(format!("examples/{example}.rs"))).unwrap();
        let code: Vec<&str> = source.lines().skip_while(|line| line.starts_with("//!")).collect();
        assert_eq!(shown.trim(), code.join("\n").trim(), "{example}");
    }
}

/// What README.md shows of the configuration is what a reader copies: it must be right, and let in
/// nobody by a token that stands there for all to read.
#[test]
fn the_examples_of_the_readme_are_accepted() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let scratch = scratch();
    let folder = scratch.path();
    fs::create_dir(folder.join("certs")).unwrap();
    let authority = Authority::new();
    let own = authority.identity(&["localhost"]);
    for (name, text) in
        [("server.pem", &own.cert), ("server.key", &own.key), ("clients.pem", &authority.pem)]
    {
        fs::write(folder.join("certs").join(name), text).unwrap();
    }
    let (mut seen, mut secrets) = (0, 0);
    for block in readme.split("```toml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let head = if block.contains("[proxy]") { "" } else { "[proxy]\nname = \"p\"\n" };
        let (file, text) = (folder.join("proxy.toml"), format!("{head}{block}"));
        fs::write(&file, &text).unwrap();
        let names = variables(&text);
        let mut check = Command::new(env!("CARGO_BIN_EXE_mcp-proxy"));
        check.arg("-c").arg(&file).arg("--check");
        let run = |check: &mut Command| {
            let output = check.output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        // Without its secrets it is refused, each of them by name.
        for name in &names {
            check.env_remove(name);
        }
        let (code, said) = run(&mut check);
        assert_eq!(code, Some(if names.is_empty() { 0 } else { 1 }), "{said}\n{text}");
        for name in &names {
            assert!(said.contains(name.as_str()), "{name}: {said}");
            check.env(name, format!("0123456789abcdef-{name}"));
        }
        let (code, said) = run(&mut check);
        assert_eq!(code, Some(0), "{said}\n{text}");
        (seen, secrets) = (seen + 1, secrets + names.len());
    }
    assert!(seen >= 7 && secrets >= 4, "only {seen} examples with {secrets} secrets were found");
}

/// The variables that a configuration names; one with a default would let it start without.
fn variables(text: &str) -> Vec<String> {
    let behind = text.split("${").skip(1);
    let names = behind.map(|rest| rest.split('}').next().unwrap().to_owned()).collect();
    assert!(!text.contains(":-"), "a default for a secret: {text}");
    names
}
