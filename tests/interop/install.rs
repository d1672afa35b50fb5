//! Owns: the published servers and clients under `target/interop`, at the pinned versions.
//! Never: anything outside that folder; and no silent skip where CI runs.
//! Next: `run`, which starts them.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the scripts and the pins are.
pub(super) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// The folder with `node_modules` and the scripts beside it, or `None` where the tests that need
/// it are to be skipped: that has been said on stderr then, or, with `CI` set, has failed.
pub(super) fn node() -> Option<&'static Path> {
    static NODE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    given("Node", NODE.get_or_init(install_node)).map(PathBuf::as_path)
}

/// The Python interpreter that has the pinned packages, or `None` as in [`node`].
pub(super) fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    given("Python", PYTHON.get_or_init(install_python)).map(PathBuf::as_path)
}

/// The newer Python SDK and the reference server, or `None` as in [`node`].
pub(super) fn reference() -> Option<&'static Reference> {
    static REFERENCE: OnceLock<Result<Reference, String>> = OnceLock::new();
    given("Python", REFERENCE.get_or_init(install_reference))
}

/// The interpreter that has the judges of what the proxy tells to the outside, and their script, or
/// `None` as in [`node`].
pub(super) fn judges() -> Option<&'static (PathBuf, PathBuf)> {
    static JUDGES: OnceLock<Result<(PathBuf, PathBuf), String>> = OnceLock::new();
    given("Python", JUDGES.get_or_init(install_judges))
}

/// Prometheus' own checker: of this machine, or out of Debian's package, which is unpacked and not
/// installed. Other systems have no such package, so a test without it is no failure.
pub(super) fn promtool() -> Result<PathBuf, String> {
    if let Ok(found) = Command::new("promtool").arg("--version").output()
        && found.status.success()
    {
        return Ok(PathBuf::from("promtool"));
    }
    let home = once("promtool", &[], "", |home| {
        run(Command::new("apt-get").args(["download", "prometheus"]).current_dir(home))?;
        run(Command::new("sh").args(["-c", "dpkg -x prometheus_*.deb ."]).current_dir(home))
    })?;
    Ok(home.join("usr/bin/promtool"))
}

/// The official conformance suite, or `None` as in [`node`].
pub(super) fn suite() -> Option<&'static Suite> {
    static SUITE: OnceLock<Result<Suite, String>> = OnceLock::new();
    given("conformance suite", SUITE.get_or_init(install_suite))
}

/// The newer Python SDK, and the reference server that its source distribution brings.
pub(super) struct Reference {
    pub(super) python: PathBuf,
    /// Where the module `mcp_everything_server` lies.
    pub(super) folder: PathBuf,
}

/// The conformance suite, and the Node that it needs, which is newer than what the rest needs.
pub(super) struct Suite {
    pub(super) node: PathBuf,
    pub(super) script: PathBuf,
}

fn given<T>(what: &str, installed: &'static Result<T, String>) -> Option<&'static T> {
    match installed {
        Ok(installed) => Some(installed),
        Err(why) if std::env::var_os("CI").is_some() => panic!("{what}: {why}"),
        Err(why) => {
            // Not eprintln, which the test harness would swallow.
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {what}: {why}");
            None
        }
    }
}

fn install_node() -> Result<PathBuf, String> {
    at_least("node", (20, 0))?;
    let home = packages("node")?;
    // Scripts find packages upwards from where they lie. Renamed into place, because other test
    // processes may be starting them.
    for script in ["answers.mjs", "client.mjs", "client2.mjs", "loopback.mjs", "paged.mjs"] {
        let text = fs::read(sources().join("node").join(script)).map_err(|e| e.to_string())?;
        if fs::read(home.join(script)).is_ok_and(|there| there == text) {
            continue;
        }
        let fresh = home.join(format!("{script}.{}", std::process::id()));
        fs::write(&fresh, text).map_err(|e| e.to_string())?;
        fs::rename(&fresh, home.join(script)).map_err(|e| e.to_string())?;
    }
    Ok(home)
}

fn install_suite() -> Result<Suite, String> {
    let home = packages("suite")?.join("node_modules");
    // The packages that `node@22` would fetch unseen while it is installed.
    let node = ["x64", "arm64"].map(|cpu| home.join(format!("node-linux-{cpu}/bin/node")));
    let node = node.into_iter().find(|node| node.exists()).ok_or("no Node 22 for this machine")?;
    Ok(Suite { node, script: home.join("@modelcontextprotocol/conformance/dist/index.js") })
}

/// The folder with what the lock file of `tests/interop/{what}` pins.
fn packages(what: &str) -> Result<PathBuf, String> {
    at_least("npm", (0, 0))?;
    let from = sources().join(what);
    let pins = ["package.json", "package-lock.json"];
    once(what, &pins.map(|pin| from.join(pin)), "", |home| {
        for pin in pins {
            fs::copy(from.join(pin), home.join(pin)).map_err(|e| e.to_string())?;
        }
        run(Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(home))
    })
}

fn install_python() -> Result<PathBuf, String> {
    let version = at_least("python3", (3, 10))?;
    let pins = sources().join("python/requirements.txt");
    let home = once("python", std::slice::from_ref(&pins), &version, |home| venv(home, &pins))?;
    Ok(home.join("bin/python"))
}

fn install_judges() -> Result<(PathBuf, PathBuf), String> {
    let version = at_least("python3", (3, 10))?;
    let from = sources().join("judges");
    let pins = from.join("requirements.txt");
    let home = once("judges", std::slice::from_ref(&pins), &version, |home| venv(home, &pins))?;
    Ok((home.join("bin/python"), from.join("judge.py")))
}

fn install_reference() -> Result<Reference, String> {
    let version = at_least("python3", (3, 10))?;
    let pins = ["requirements.txt", "reference.txt"];
    let pins = pins.map(|pin| sources().join("python2").join(pin));
    let home = once("python2", &pins, &version, |home| {
        venv(home, &pins[0])?;
        run(pip(home, "download")
            .args(["--no-binary", "mcp", "--no-deps", "-r"])
            .arg(&pins[1])
            .current_dir(home))?;
        run(Command::new("tar").args(["-xzf", "mcp-2.3.0.tar.gz"]).current_dir(home))
    })?;
    Ok(Reference {
        python: home.join("bin/python"),
        folder: home.join("mcp-2.3.0/examples/servers/everything-server"),
    })
}

/// A virtual environment with what `pins` names.
fn venv(home: &Path, pins: &Path) -> Result<(), String> {
    run(Command::new("python3").args(["-m", "venv"]).arg(home))?;
    run(pip(home, "install").arg("-r").arg(pins))
}

fn pip(home: &Path, what: &str) -> Command {
    let mut command = Command::new(home.join("bin/python"));
    command.args(["-m", "pip", what, "--quiet", "--disable-pip-version-check"]);
    command
}

/// A folder of `target/interop`, named by what it was made of, made once: other threads and other
/// processes wait meanwhile; an attempt that was cut off is begun anew.
fn once(
    what: &str,
    pins: &[PathBuf],
    also: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut hash = DefaultHasher::new();
    also.hash(&mut hash);
    for pin in pins {
        fs::read(pin).map_err(|e| format!("{}: {e}", pin.display()))?.hash(&mut hash);
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
    let home = root.join(format!("{what}-{:016x}", hash.finish()));
    fs::create_dir_all(&root).map_err(|e| e.to_string())?;
    let lock = File::create(root.join(format!("{what}.lock"))).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    let done = home.join("complete");
    if !done.exists() {
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        make(&home)?;
        fs::write(&done, "").map_err(|e| e.to_string())?;
    }
    Ok(home)
}

/// The version that `program --version` tells, if it is new enough.
fn at_least(program: &str, least: (u32, u32)) -> Result<String, String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("no {program}: {e}"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .split('.')
        .map_while(|part| part.parse().ok());
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < least {
        return Err(format!("{program} is {version:?}, needed is {}.{}", least.0, least.1));
    }
    Ok(version)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
