//! Owns: nginx as a row.
//! Never: a tuning for one row that another one is denied.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;
use crate::process::Running;

pub(crate) fn is_installed() -> bool {
    let version = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// nginx as a plain reverse proxy, tuned for this: connections to the backend are kept and never
/// run out, nothing is logged or spilled to disk, each worker has its own listener. Buffers of
/// 64 KiB cost it a quarter less than 16 KiB for results of that size, and nothing for small
/// ones; without buffering it needs half as much again.
pub(crate) fn start(
    workers: usize,
    connections: usize,
    backend: SocketAddr,
    scratch: &Path,
) -> Result<(Running, SocketAddr)> {
    let folder = scratch.join(format!("nginx-{workers}"));
    fs::create_dir_all(&folder)?;
    // nginx cannot take port 0.
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "daemon off;
worker_processes {workers};
{user}
pid {pid};
error_log {log} error;
events {{ worker_connections {most}; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    client_max_body_size 16m;
    client_body_buffer_size 128k;
    client_body_temp_path {body};
    proxy_temp_path {temp};
    fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; scgi_temp_path {temp};
    upstream stub {{
        server {backend};
        keepalive 512;
        keepalive_requests 100000000;
        keepalive_timeout 75s;
    }}
    server {{
        listen {addr} reuseport backlog=4096;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffer_size 16k;
            proxy_buffers 4 64k;
            proxy_busy_buffers_size 128k;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
",
        user = if is_root() { "user root;" } else { "" },
        most = 4096.max(connections + 1024),
        pid = at("pid"),
        log = at("error.log"),
        body = at("body"),
        temp = at("temp"),
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let child = Running::start("nginx".as_ref(), |command| {
        command
            .args(["-p", &at(""), "-c", &at("nginx.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
    })?;
    Ok((child, addr))
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}
