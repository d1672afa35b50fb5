//! Owns: which keys of a table do not go together with its others.
//! Never: what the keys mean (`compile`, `access`, `roles`).
//! Next: `schema`, which tells editors.

use super::compile::Url;
use super::config::{AuthTable, BackendTable};
use super::roles::Role;
use super::setting::{AuthKind, Transport};

const BEARER_ONLY: [&str; 2] = ["tokens", "scoped_tokens"];
const JWT_ONLY: [&str; 8] = [
    "issuer",
    "audience",
    "jwks_uri",
    "algorithms",
    "leeway_seconds",
    "required_scopes",
    "roles",
    "role_mapping",
];

const STDIO_ONLY: [&str; 5] = ["command", "args", "env", "cwd", "inherit_env"];
/// Of sessions that have a child or a stream of their own.
const CHANNEL_ONLY: [&str; 2] = ["max_children", "idle_stop_seconds"];
const HTTP_ONLY: [&str; 7] =
    ["url", "bearer_token", "headers", "tls", "max_connections", "idle_seconds", "forward_auth"];

/// Why `[auth]` does not take a key.
pub(super) fn auth(table: &AuthTable, key: &str) -> Option<String> {
    let (foreign, kind): (&[&str], _) = match table.r#type {
        AuthKind::Bearer => (&JWT_ONLY, "bearer"),
        AuthKind::Jwt => (&BEARER_ONLY, "jwt"),
    };
    foreign.contains(&key).then(|| format!("not accepted with type = \"{kind}\""))
}

/// Why a backend does not take a key.
pub(super) fn backend(table: &BackendTable, key: &str) -> Option<String> {
    let (foreign, more, transport): (&[&str], &[&str], _) = match table.transport {
        Transport::Stdio => (&HTTP_ONLY, &[], "stdio"),
        Transport::Http => (&STDIO_ONLY, &CHANNEL_ONLY, "http"),
        Transport::Sse => (&STDIO_ONLY, &[], "sse"),
    };
    if foreign.contains(&key) || more.contains(&key) {
        return Some(format!("not accepted with transport = \"{transport}\""));
    }
    if key == "tls" {
        let url = table.url.as_deref().and_then(|url| Url::parse(url).ok());
        let is_plain = url.is_some_and(|url| !url.https);
        return is_plain.then(|| "not accepted with an http url".to_owned());
    }
    let role = Role::ALL.into_iter().find(|role| role.detail() == key)?;
    let lacks = table.stands_behind(role).is_none();
    lacks.then(|| format!("not accepted without {}", role.key()))
}
