//! The proxy as a service: what it tells the manager that started it, and the unit of systemd.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use crate::support::DEADLINE;
use crate::support::process::{Setup, scratch, stdio_backend};

/// What the manager hears next.
fn heard(socket: &UnixDatagram) -> String {
    let mut room = [0; 4096];
    let length = socket.recv(&mut room).expect("a word of the proxy");
    String::from_utf8(room[..length].to_vec()).expect("UTF-8")
}

#[test]
fn a_service_manager_is_told_how_it_fares() {
    let scratch = scratch();
    let path = scratch.path().join("notify");
    let name = format!("mcp-proxy-test-{}", std::process::id());
    let abstracted = SocketAddr::from_abstract_name(&name).unwrap();
    for (socket, variable) in [
        (UnixDatagram::bind(&path), path.to_str().unwrap().to_owned()),
        (UnixDatagram::bind_addr(&abstracted), format!("@{name}")),
    ] {
        let socket = socket.expect("bind");
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut proxy = Setup {
            backends: stdio_backend("s", &[]),
            variable: Some(("NOTIFY_SOCKET", variable)),
            ..Setup::default()
        }
        .start();
        let url = format!("http://{}/mcp", proxy.addr);
        assert_eq!(heard(&socket), format!("READY=1\nSTATUS=serving at {url}"));
        // It listens by then.
        proxy.client();
        let status = heard(&socket);
        assert!(status.starts_with(&format!("STATUS=serving at {url}, ")), "{status}");
        assert!(status.ends_with(" of 1 backends up"), "{status}");
        // The manager waits for both words after its signal.
        proxy.signal("HUP");
        let told = heard(&socket);
        assert!(told.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told}");
        let told = heard(&socket);
        assert!(told.starts_with("READY=1\nSTATUS=serving at "), "{told}");
        proxy.signal("TERM");
        assert!(heard(&socket).starts_with("STOPPING=1\n"));
        assert_eq!(proxy.wait().code(), Some(0));
    }
}

#[test]
fn the_unit_is_understood_by_systemd() {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let Ok(version) = version else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let version: u32 = version.split_whitespace().nth(1).unwrap().parse().unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let unit = std::fs::read_to_string(format!("{root}/packaging/mcp-proxy.service")).unwrap();
    let scratch = scratch();
    let file = scratch.path().join("mcp-proxy.service");
    let command = "/usr/local/bin/mcp-proxy --config";
    assert!(unit.contains(&format!("ExecStart={command}")));
    // Where the binary is here.
    let here = format!("{} --config", env!("CARGO_BIN_EXE_mcp-proxy"));
    let mut here = unit.replace(command, &here);
    if version < 253 {
        here = here.replace("Type=notify-reload", "Type=notify");
    }
    std::fs::write(&file, here).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("mcp-proxy")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}
