//! Owns: who is let in: the caller of a request, the challenge for those who are not, and where
//! tokens are to be had.
//! Never: what a token means (`auth`).
//! Next: `session`, what a message asks for.
//!
//! RFC 6750 §3, RFC 9728; MCP 2025-11-25, Basic, Authorization.

use std::fmt::Write;
use std::io;
use std::sync::Arc;

use super::Ask;
use super::answer::{JSON, refuse, refuse_with, with};
use crate::auth::bearer::{ADMIN, shown};
use crate::auth::{Access, Refused};
use crate::error::{Error, Kind, Result};
use crate::http::{Connection, Method, RequestHead};
use crate::mcp::session::Authorization;
use crate::world::World;

/// Where RFC 9728 (§3.1) puts the metadata: before the path of what it is about.
const METADATA: &str = "/.well-known/oauth-protected-resource";

/// Finds out who calls, and puts it into `ask`.
///
/// # Errors
/// He may not: see [`turn_away`].
pub(super) async fn admit(
    world: &World,
    access: &Access,
    ask: &mut Ask,
    head: &RequestHead,
) -> Result<()> {
    let token = match shown(head.fields("authorization")) {
        Ok(token) => token,
        // Where no token is needed, what is shown may be for somebody else.
        Err(_) if !access.is_closed() => None,
        Err(reason) => return Err(refusal(Refused::BadToken(reason))),
    };
    let caller = match token {
        None if access.is_closed() => return Err(refusal(Refused::NoToken)),
        None => None,
        Some(token) => match access.known(&world.desk, token) {
            Some(caller) => Some(caller),
            // Boxed: it is rare, and must not make every exchange larger.
            None => Box::pin(access.verify(&world.desk, token)).await.map_err(refusal)?,
        },
    };
    if access.is_closed() {
        ask.principal = caller.as_ref().map(|caller| caller.principal.clone());
    }
    ask.who.caller = caller;
    Ok(())
}

/// What backends with `forward_auth` get: what the client showed, if it is one thing. The token that
/// opens the proxy's own administration leaves it for nobody.
pub(super) fn forwarded(ask: &Ask, head: &RequestHead) -> Option<Arc<Authorization>> {
    if ask.who.caller.as_ref().is_some_and(|caller| &*caller.principal == ADMIN) {
        return None;
    }
    let mut fields = head.fields("authorization");
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let text = std::str::from_utf8(field).ok().filter(|text| !text.is_empty())?;
    Some(Arc::new(Authorization(text.to_owned())))
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NoToken => Error::new(Kind::Unauthorized).cause("no token"),
        Refused::BadToken(reason) => Error::new(Kind::Unauthorized).cause(reason),
        Refused::Scope => Error::new(Kind::InsufficientScope),
        Refused::Busy => Error::new(Kind::Capacity).cause("too many tokens to verify"),
    }
}

/// Whether a caller may use /admin and the proxy's own tools: without `[auth]` and without
/// `security.admin_token` whoever is on this machine, if nobody else can connect; who comes through
/// the program that embeds the proxy may be anywhere.
pub(super) fn is_admin(world: &World, ask: &Ask) -> bool {
    match &world.plan.access {
        None => !ask.inside && world.plan.listen.addr.ip().is_loopback(),
        Some(_) => ask.who.caller.as_ref().is_some_and(|caller| caller.admin),
    }
}

/// As [`admit`], for /admin.
///
/// # Errors
/// He may not: 401 if a right token would help, 403 if not.
pub(super) async fn admit_admin(world: &World, ask: &mut Ask, head: &RequestHead) -> Result<()> {
    if let Some(access) = &world.plan.access {
        admit(world, access, ask, head).await?;
        if ask.who.caller.is_none() {
            return Err(refusal(Refused::NoToken));
        }
    }
    match is_admin(world, ask) {
        true => Ok(()),
        false => Err(Error::new(Kind::Forbidden).context("for administrators only")),
    }
}

/// Refuses a request, with a challenge where a token would help.
pub(super) async fn turn_away(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
    error: &Error,
) -> io::Result<()> {
    let lines = challenge(world, ask, head, error);
    refuse_with(connection, ask, &lines, error, b"null").await
}

/// The lines of a refusal: those of CORS, and a challenge where a token would help.
pub(super) fn challenge(world: &World, ask: &Ask, head: &RequestHead, error: &Error) -> String {
    let mut lines = ask.cors.clone();
    let code = match error.kind() {
        Kind::Unauthorized if head.field("authorization").is_some() => Some("invalid_token"),
        Kind::Unauthorized => Some(""),
        Kind::InsufficientScope => Some("insufficient_scope"),
        _ => None,
    };
    if let (Some(code), Some(access)) = (code, &world.plan.access) {
        lines.push_str("WWW-Authenticate: Bearer");
        let mut comma = " ";
        let mut add = |name: &str, value: &str| {
            let _ = write!(lines, "{comma}{name}=\"{value}\"");
            comma = ", ";
        };
        if !code.is_empty() {
            add("error", code);
        }
        // All of them at once, so that a client asks its user once.
        if !access.scopes().is_empty() {
            add("scope", &access.scopes().join(" "));
        }
        if access.is_closed() {
            let place = Place::of(world, head);
            let suffix = if head.path() == "/mcp" { "/mcp" } else { "" };
            let url = format!("{}{METADATA}{}{suffix}", place.origin, place.path);
            add("resource_metadata", &url);
        }
        lines.push_str("\r\n");
        if !ask.cors.is_empty() {
            lines.push_str("Access-Control-Expose-Headers: WWW-Authenticate\r\n");
        }
    }
    lines
}

/// How clients reach this proxy.
struct Place {
    origin: String,
    path: String,
}

impl Place {
    fn of(world: &World, head: &RequestHead) -> Place {
        let listen = &world.plan.listen;
        if let Some(url) = &listen.public_url {
            return Place { origin: url.origin.clone(), path: url.path.clone() };
        }
        let scheme = if listen.tls.is_some() { "https" } else { "http" };
        let host = head.host().map_or_else(|| listen.addr.to_string(), str::to_owned);
        Place { origin: format!("{scheme}://{host}"), path: String::new() }
    }
}

/// Whether a path is one of those of the metadata, which exist where tokens are needed.
pub(super) fn is_metadata(world: &World, path: &str) -> bool {
    let closed = world.plan.access.as_ref().is_some_and(|access| access.is_closed());
    let Some(about) = path.strip_prefix(METADATA).filter(|_| closed) else { return false };
    let public = world.plan.listen.public_url.as_ref().map_or("", |url| &url.path);
    // A proxy before this one may cut its own path off, or may not.
    let about = about.strip_prefix(public).unwrap_or(about);
    matches!(about, "" | "/" | "/mcp")
}

/// The metadata (RFC 9728 §2): open, for who has no token has to read them.
pub(super) async fn metadata(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    head: &RequestHead,
) -> io::Result<()> {
    match ask.method {
        Method::Get | Method::Head => {}
        Method::Options => return super::options(connection, ask).await,
        _ => {
            let error = Error::new(Kind::MethodNotAllowed);
            return refuse(connection, ask, &error, b"null").await;
        }
    }
    let place = Place::of(world, head);
    let suffix = if head.path().ends_with("/mcp") { "/mcp" } else { "" };
    let mut document = serde_json::json!({
        "resource": format!("{}{}{suffix}", place.origin, place.path),
        "bearer_methods_supported": ["header"],
        "resource_name": &*world.plan.name,
    });
    if let Some(access) = &world.plan.access {
        // One that is no address cannot be asked for anything.
        let issuer = access.issuer().filter(|issuer| issuer.contains("://"));
        if let Some(issuer) = issuer {
            document["authorization_servers"] = [issuer].into();
        }
        let scopes = access.scopes_known();
        if !scopes.is_empty() {
            document["scopes_supported"] = scopes.into();
        }
    }
    connection.answer(200, &with(JSON, &ask.cors), document.to_string().as_bytes()).await
}
