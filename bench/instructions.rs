//! Owns: how many instructions the pieces of the hot path take, held to bench/instructions.toml.
//! Never: time; counts under callgrind are the same on a busy machine, and nearly so on another one.
//! Next: `support`, the pieces.
//!
//! `cargo bench --bench instructions` compares, fails if a piece takes more than the table says, and
//! says so if it takes fewer; `-- --write` writes the table anew, which belongs into the commit that changes
//! them; `-- PIECE ..` takes only those whose name contains a word. Without valgrind it says so, and
//! nothing is compared.
//!
//! A piece runs in a process of its own, once for no turn and once for some, so that what a start
//! costs is not counted.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use serde::Deserialize;

/// Turns that are counted. Buffers have their size, and tables their place, after the first ones.
const TURNS: u64 = 200;
const WARM_UP: u64 = 20;
/// Seeds of hash tables differ from run to run, and with them some counts, slightly. More comes of
/// what the optimiser inlines, which a change elsewhere in the library may move.
const TOLERANCE: f64 = 0.1;
/// So many more are no change of a small piece: some 10 ns, the spilling of a few registers.
const HANDFUL: u64 = 32;
/// Another compiler makes other code of the same source.
const TOLERANCE_OF_COMPILERS: f64 = 0.25;
/// A piece beyond the tolerance is counted so often: a change stays, a seed does not.
const COUNTS: usize = 4;

/// bench/instructions.toml.
#[derive(Deserialize)]
struct Table {
    /// What it was counted with.
    compiler: String,
    /// What its processor has: other instructions are other counts.
    processor: String,
    /// Instructions of one turn.
    pieces: BTreeMap<String, u64>,
}

fn table_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("bench/instructions.toml")
}

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, name, turns] = arguments.as_slice()
        && word == "--run"
    {
        run(name, turns.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    match compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Turns of one piece.
fn run(name: &str, turns: u64) {
    let mut pieces = support::pieces().into_iter().filter(|(known, _)| *known == name);
    let (_, mut turn) = pieces.next().expect("a piece of that name");
    for _ in 0..WARM_UP + turns {
        turn();
    }
}

/// Instructions of that many turns and all that comes with a process.
fn count(name: &str, turns: u64) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args(["--run", name, &turns.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.lines().find_map(|line| {
        let digits = line.split_once("Collected :")?.1;
        digits.trim().parse().ok()
    });
    counted.filter(|_| output.status.success()).ok_or(format!("{name}: valgrind says: {said}"))
}

/// Instructions of one turn.
fn turn(name: &str) -> Result<u64, String> {
    Ok(count(name, TURNS)?.saturating_sub(count(name, 0)?) / TURNS)
}

fn compiler() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".to_owned());
    let said = Command::new(rustc).arg("--version").output();
    said.map_or(String::new(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    let has = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512", is_x86_feature_detected!("avx512f")),
    ];
    let has = has.iter().filter(|(_, has)| *has).map(|(name, _)| format!(" {name}"));
    format!("x86_64{}", has.collect::<String>())
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    std::env::consts::ARCH.to_owned()
}

fn compare(arguments: &[String]) -> Result<(), String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!(
            "No valgrind here: instructions are not counted (Debian: apt-get install valgrind)."
        );
        return Ok(());
    }
    let write = arguments.iter().any(|word| word == "--write");
    let wanted: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let (compiler, processor) = (compiler(), processor());
    let stored = std::fs::read_to_string(table_path()).ok();
    let known = match &stored {
        Some(text) => toml::from_str::<Table>(text).map_err(|error| error.to_string())?,
        None => Table {
            compiler: compiler.clone(),
            processor: processor.clone(),
            pieces: BTreeMap::new(),
        },
    };
    let same = known.compiler == compiler;
    let tolerance = if same { TOLERANCE } else { TOLERANCE_OF_COMPILERS };
    if !same && !write {
        println!("Counted with {}, here is {compiler}: {tolerance} is tolerated.", known.compiler);
    }
    let same_processor = known.processor == processor;
    if !same_processor && !write {
        println!("Counted on {}, here is {processor}: shown, and not compared.", known.processor);
    }
    let (mut faults, mut fewer) = (String::new(), String::new());
    let mut pieces = known.pieces.clone();
    println!("{:<32} {:>10} {:>10} {:>8}", "instructions of a turn", "table", "now", "");
    for (name, _) in support::pieces() {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let was = known.pieces.get(name).copied();
        let change_to = |now: u64| was.map_or(0.0, |was| now as f64 / was.max(1) as f64 - 1.0);
        let mut now = turn(name)?;
        for _ in 1..COUNTS {
            if change_to(now).abs() <= tolerance || write || !same_processor {
                break;
            }
            let again = turn(name)?;
            if change_to(again).abs() < change_to(now).abs() {
                now = again;
            }
        }
        let change = change_to(now);
        println!("{name:<32} {:>10} {now:>10} {:>+7.1}%", was.unwrap_or(0), change * 100.0);
        pieces.insert(name.to_owned(), now);
        let _ = match was {
            None if stored.is_none() => Ok(()),
            None => writeln!(faults, "{name} is not in the table: {now}"),
            Some(was) if change.abs() > tolerance && now.abs_diff(was) > HANDFUL => {
                let list = if now > was { &mut faults } else { &mut fewer };
                writeln!(list, "{name}: {was} in the table, {now} now ({:+.1} %)", change * 100.0)
            }
            Some(_) => Ok(()),
        };
    }
    if wanted.is_empty() {
        let exist: Vec<&str> = support::pieces().iter().map(|(name, _)| *name).collect();
        for gone in known.pieces.keys().filter(|name| !exist.contains(&name.as_str())) {
            let _ = writeln!(faults, "{gone} is in the table, and no piece any more");
            pieces.remove(gone);
        }
    }
    if write {
        let mut text = String::from(
            "# Instructions of one turn of each piece of the hot path, under callgrind. Written by\n\
             # `cargo bench --bench instructions -- --write`; the commit says why they changed.\n",
        );
        let _ = writeln!(text, "compiler = \"{compiler}\"");
        let _ = writeln!(text, "processor = \"{processor}\"\n\n[pieces]");
        for (name, count) in pieces {
            let _ = writeln!(text, "\"{name}\" = {count}");
        }
        return std::fs::write(table_path(), text).map_err(|error| error.to_string());
    }
    if !same_processor {
        return Ok(());
    }
    if stored.is_none() {
        println!("There is no table to hold this to; -- --write makes one.");
        return Ok(());
    }
    if !fewer.is_empty() {
        println!("{fewer}Well done; -- --write holds the next change to it.");
    }
    match faults.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{faults}If that is meant: cargo bench --bench instructions -- --write, and say why."
        )),
    }
}
