//! The `mcp-proxy` command: arguments, signals, exit codes.
//!
//! Exit codes: 0 after an end that was asked for, 1 for faults of the configuration, a start that
//! failed and a worker that fell, 2 for arguments that are not understood.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mcp_proxy::control::notify::Manager;
use mcp_proxy::control::{self, Handle, Options};
use mcp_proxy::rt::{Driver, signals};
use mcp_proxy::{Proxy, ProxyConfig, limits};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One endpoint in front of many Model Context Protocol servers.
#[derive(Parser, Debug)]
#[command(name = "mcp-proxy", version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file [default: proxy.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Show all faults and warnings of the configuration, and do not run
    #[arg(long)]
    check: bool,

    /// Listen there instead of where the configuration says: IP:PORT, localhost:PORT, or :PORT for
    /// this machine alone; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", value_parser = listen_addr)]
    listen: Option<SocketAddr>,

    /// What to log: error, warn, info, debug, trace or off, or directives as RUST_LOG has them
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    log_level: Option<String>,

    /// Serve the servers of an mcp.json file too; without --config it is all there is
    #[arg(long, value_name = "FILE")]
    from_mcp_json: Option<PathBuf>,

    /// The event loop
    #[arg(long, hide = true, env = "MCP_PROXY_DRIVER", hide_env = true, default_value = "auto")]
    driver: DriverName,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// A small MCP server on standard input and output, to try things with
    DemoServer,
    /// About the configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A script that completes this command line in a shell; to be put where that shell looks
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// The JSON Schema of the configuration file, for editors
    Schema,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum DriverName {
    Auto,
    Tuned,
    Ring,
    Epoll,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        None => {}
        Some(Command::DemoServer) => return mcp_proxy::demo::serve_stdio(),
        Some(Command::Config(ConfigCommand::Schema)) => {
            say(&ProxyConfig::schema());
            return ExitCode::SUCCESS;
        }
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            let command = &mut Arguments::command();
            clap_complete::generate(shell, command, env!("CARGO_PKG_NAME"), &mut script);
            say(&String::from_utf8_lossy(&script));
            return ExitCode::SUCCESS;
        }
    }
    // Before any thread starts: one that does not block them would die of them.
    if let Err(error) = signals::block() {
        eprintln!("mcp-proxy: signals cannot be blocked: {error}");
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    // Asked now: behind a file that was replaced meanwhile the answer names none.
    if let Ok(program) = std::env::current_exe() {
        control::is_the_command(program);
    }
    let (file, loaded) = match (&arguments.config, &arguments.from_mcp_json) {
        (None, Some(servers)) => (servers.clone(), ProxyConfig::from_mcp_json(servers)),
        (Some(file), Some(servers)) => {
            (file.clone(), ProxyConfig::load_with_mcp_json(file, servers))
        }
        (file, None) => {
            let file = file.clone().unwrap_or_else(|| PathBuf::from("proxy.toml"));
            let loaded = ProxyConfig::load(&file);
            (file, loaded)
        }
    };
    let mut config = match loaded {
        Ok(config) => config,
        Err(report) => {
            for warning in &report.warnings {
                eprintln!("warning: {warning}");
            }
            let hint = match file.exists() {
                true => "",
                false => {
                    "\nname a configuration with -c FILE, or an mcp.json with --from-mcp-json FILE"
                }
            };
            return Err(format!("{report}{hint}"));
        }
    };
    if let Some(addr) = arguments.listen {
        config.listen_on(addr);
    }
    if arguments.check {
        for warning in config.warnings() {
            eprintln!("warning: {warning}");
        }
        say(&control::summary(&file.display().to_string(), &config));
        return Ok(());
    }

    let set_level = start_log(arguments.log_level.as_deref(), &config);
    let name = config.name().to_owned();
    let driver = match arguments.driver {
        DriverName::Auto => None,
        DriverName::Tuned => Some(Driver::TunedRing),
        DriverName::Ring => Some(Driver::Ring),
        DriverName::Epoll => Some(Driver::Epoll),
    };
    let manager = Arc::new(Manager::from_env());
    let proxy = Proxy::start(config, Options { driver, ..Options::default() })
        .map_err(|error| error.to_string())?;
    let handle = proxy.handle();
    handle.on_reload(move |config| set_level(config.log_level()));
    manager.ready(&format!("serving at {}", handle.url()));
    obey_signals(handle.clone(), manager.clone())
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    say(&control::greeting(&name, &handle.url()));
    handle.wait_settled(limits::BANNER_WAIT);
    let backends = handle.backends();
    say(&control::status(&backends));
    manager.status(&control::standing(&handle.url(), &backends));
    handle.wait().map_err(|error| error.to_string())
}

/// Reads the configuration again for each word that is sent, on a thread of its own, so that no other
/// signal waits. What comes of it is in the log; the service manager hears when it is done.
fn reloads(handle: Handle, manager: Arc<Manager>) -> std::io::Result<SyncSender<()>> {
    let (wanted, words) = sync_channel(1);
    let obey = move || {
        for () in words {
            manager.reloading();
            let _ = handle.reload_now();
            manager.ready(&control::standing(&handle.url(), &handle.backends()));
        }
    };
    std::thread::Builder::new().name("mcp-reload".to_owned()).spawn(obey)?;
    Ok(wanted)
}

/// The first SIGTERM or SIGINT ends the proxy in good order, the second at once; children then die
/// of their parent's death.
fn obey_signals(handle: Handle, manager: Arc<Manager>) -> std::io::Result<()> {
    let reload = reloads(handle.clone(), manager.clone())?;
    let obey = move || {
        let mut ending: Option<Instant> = None;
        loop {
            match signals::wait() {
                Ok(signals::Signal::Terminate | signals::Signal::Interrupt) => match ending {
                    None => {
                        ending = Some(Instant::now());
                        manager.stopping();
                        handle.shutdown();
                    }
                    // One order may arrive twice: timeout(1) tells the process and its group.
                    Some(at) if at.elapsed() < limits::SIGNAL_ECHO => {}
                    Some(_) => {
                        tracing::warn!("a second signal: ending at once");
                        std::process::exit(0);
                    }
                },
                Ok(signals::Signal::User1) => handle.reopen_logs(),
                // One that waits is as good as two.
                Ok(signals::Signal::HangUp) => drop(reload.try_send(())),
                Err(error) => {
                    tracing::error!("signals are no longer taken: {error}");
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("mcp-signals".to_owned()).spawn(obey).map(drop)
}

/// Logs go to standard error, so that standard output stays readable to programs. What is given back
/// sets another level, unless the one in force was not the file's to say.
fn start_log(level: Option<&str>, config: &ProxyConfig) -> Box<dyn Fn(&str) + Send + Sync> {
    let name = EnvFilter::DEFAULT_ENV;
    // Set to nothing is as good as not set.
    let own = std::env::var(name).ok().filter(|own| level.is_none() && !own.is_empty());
    let checked = own.as_deref().map(ProxyConfig::check_log_level);
    if let Some(Err(message)) = &checked {
        eprintln!("warning: {name} is ignored: {message}");
    }
    let own = own.filter(|_| matches!(checked, Some(Ok(()))));
    let fixed = level.or(own.as_deref());
    let is_fixed = fixed.is_some();
    let filter = EnvFilter::new(fixed.unwrap_or(config.log_level()));
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    // Checked by the configuration, which takes the same directives.
    let set = move |level: &str, reload: &dyn Fn(EnvFilter) -> bool| {
        let filter = EnvFilter::try_new(level).ok().filter(|_| !is_fixed);
        if filter.is_some_and(|filter| !reload(filter)) {
            eprintln!("mcp-proxy: the level of the log cannot be changed");
        }
    };
    if config.json_logs() {
        let log = log.json().with_env_filter(filter).with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        Box::new(move |level| set(level, &|filter| handle.reload(filter).is_ok()))
    } else {
        let log = log.with_ansi(std::io::stderr().is_terminal());
        let log = log.with_env_filter(filter).with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        Box::new(move |level| set(level, &|filter| handle.reload(filter).is_ok()))
    }
}

/// To standard output; a reader that has left is nobody's fault.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `HOST:PORT`, `[IPv6]:PORT`, `localhost:PORT` or `:PORT`.
fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let wrong = || "accepted: IP:PORT, localhost:PORT or :PORT".to_owned();
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && matches!(host, "" | "localhost") => {
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        }
        _ => Err(wrong()),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    ProxyConfig::check_log_level(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let plain = parse("mcp-proxy").unwrap();
        assert!(
            plain.config.is_none()
                && !plain.check
                && plain.listen.is_none()
                && plain.command.is_none()
        );
        let all = parse("mcp-proxy -c a --check --listen :1 --log-level debug --driver epoll");
        let all = all.unwrap();
        assert_eq!((all.config, all.check), (Some(PathBuf::from("a")), true));
        assert_eq!((all.log_level.as_deref(), all.driver), (Some("debug"), DriverName::Epoll));
        assert_eq!(parse("mcp-proxy --config=a").unwrap().config, Some(PathBuf::from("a")));
        assert!(parse("mcp-proxy demo-server").unwrap().command.is_some());
        for wrong in ["--nonsense", "demo", "--listen x", "-c", "--driver x"] {
            let error = parse(&format!("mcp-proxy {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
        assert_eq!(parse("mcp-proxy --version").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:80", "[::1]:80"),
            (":80", "127.0.0.1:80"),
            ("localhost:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "0.0.0.0:80"),
        ] {
            assert_eq!(listen_addr(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "80", "x:80", "::1:80x", ":", ":+1", ":65536", "127.0.0.1"] {
            assert!(listen_addr(text).is_err(), "{text}");
        }
    }
}
